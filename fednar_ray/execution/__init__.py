"""Where client groups train: in the driver's process, or on Ray actors.  Ray Core lives only here."""
