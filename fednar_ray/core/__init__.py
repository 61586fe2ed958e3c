"""The ground floor: errors, randomness, flat parameter vectors, schedules, messages. It imports no other room."""
