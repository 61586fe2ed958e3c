"""Opens a search and a comparison in MLflow's UI, and the search's report, and takes screenshots of them for the docs.

Run by scripts/screenshots; writes docs/images/search-*.png and comparison-runs.png. Exit code 1, with a message, if the
parent, a child, a curve or an artifact is missing. The selectors are those of MLflow 3's UI.
"""

import argparse
import json
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright
from server import PATIENCE_SECONDS, ROOT, serve

IMAGES = ROOT / "docs" / "images"
WIDTH, ROW = 1500, 32  # pixels
QUIET = ("--disable-gpu", "--disable-background-networking", "--no-first-run")
ARTIFACTS = ("search.yaml", "best.yaml", "results.json", "report")
# beside the search's own metric
CURVES = ("fednar/clip_fraction", "fednar/effective_weight_decay", "fednar/step_norm")
RESULTS_COLUMNS = 5  # trial, status, rounds, value, seconds; then the searched keys
SIDEBAR = "[data-component-id='mlflow_header.toggle_sidebar_button']"
UNCLUTTERED = "[data-assistant-ui] { display: none } .ag-cell-focus { border-color: transparent !important }"
TRAINING = "workflowType=machine_learning"  # otherwise the UI opens its pages for language models
CLOSE_CHAT = "[data-component-id='mlflow.assistant.chat_panel.close']"
# of a chart's runs, those that have no curve
WITHOUT_CURVE = """([metric, runs]) => {
    const cards = [...document.querySelectorAll("[data-testid='experiment-view-compare-runs-card']")];
    const card = cards.find(each => each.querySelector("h4")?.title === metric);
    const curves = card?.querySelector(".js-plotly-plot")?.data?.filter(each => each.y?.length > 1) ?? [];
    return runs.filter(run => !curves.some(each => each.name === run));
}"""
TURNING = "document.getAnimations().filter(each => each.effect.getComputedTiming().iterations === Infinity)"
HIDE_TURNING = f"{TURNING}.forEach(each => each.effect.target.style.visibility = 'hidden')"  # the UI loads charts again
SHOWN_DIRECTORY = "/home/you/fednar_ray"  # in place of the directory in which the search ran, as in recorded outputs
RENAME = """([from, to]) => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(from, to);
}"""
BROKEN_PICTURES = "pictures => pictures.filter(each => !each.complete || each.naturalWidth == 0).length"


@dataclass(frozen=True)
class Search:
    """A search as MLflow's API reports it, which the UI must show too."""

    experiment_id: str
    run_id: str
    name: str
    metric: str  # its name in MLflow
    keys: tuple[str, ...]  # that were searched
    best: str  # trial's name
    children: tuple[str, ...]  # names of runs

    @property
    def view(self) -> str:
        """The address of the saved view of the children, without the server's."""
        return f"/#/experiments/{self.experiment_id}/runs?{TRAINING}&viewStateShareKey={self.run_id[:8]}"


def main() -> None:
    """Checks the search in a directory and takes screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="directory with mlflow.db, searches/ and runs/")
    directory = parser.parse_args().directory.resolve()
    with serve(directory / "mlflow.db") as address, start_chromium() as browser:
        search = newest_search(address)
        page = open_page(browser, address, search)
        capture_runs(page, search)
        capture_answer(page, address, search)
        capture_comparison(page, address)
        capture_charts(page, address, search)
        capture_artifacts(page, address, search, directory)
        capture_report(browser, directory / "searches" / search.name / "report" / "index.html", search)


@contextmanager
def start_chromium() -> Iterator[Browser]:
    """Starts the system's Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


def find_newest(address: str, kind: str) -> dict[str, Any]:
    """Returns the run of a kind that was started last. Exits if there is none."""
    newest = {"order_by": ["attributes.start_time DESC"], "max_results": 1}
    found = search_runs(address, f"tags.`fednar.kind` = '{kind}'", **newest)
    return found[0] if found else sys.exit(f"MLflow has no {kind}: no run with the tag fednar.kind = {kind}")


def newest_search(address: str) -> Search:
    """Returns what MLflow has about the search that was started last."""
    found = find_newest(address, "search")
    info, params, tags = found["info"], *(collect_by_key(found["data"], kind) for kind in ("params", "tags"))
    children = search_runs(address, f"tags.`mlflow.parentRunId` = '{info['run_id']}'", max_results=1000)
    names = tuple(sorted(child["info"]["run_name"] for child in children))
    trials = {collect_by_key(child["data"], "tags").get("fednar.trial") for child in children}
    if missing := {"best", "baseline", tags.get("fednar.best_trial", "the best trial")} - {*names, *trials}:
        sys.exit(f"the search {info['run_name']} has no child run for {', '.join(sorted(missing))}: it did not finish")
    split, _, metric = params["search.metric"].partition("_")
    return Search(
        experiment_id=info["experiment_id"],
        run_id=info["run_id"],
        name=tags["fednar.search"],
        metric=f"{metric}/{split}",
        keys=tuple(json.loads(params["search.space"])),
        best=tags["fednar.best_trial"],
        children=names,
    )


def search_runs(address: str, wanted: str, **request: Any) -> list[dict[str, Any]]:
    """Searches the runs of all experiments."""
    ids = [each["experiment_id"] for each in search_mlflow(address, "experiments", max_results=1000)]
    return search_mlflow(address, "runs", experiment_ids=ids, filter=wanted, **request)


def search_mlflow(address: str, what: str, **request: Any) -> list[dict[str, Any]]:
    """Searches experiments or runs with MLflow's API."""
    headers, body = {"Content-Type": "application/json"}, json.dumps(request).encode()
    post = urllib.request.Request(f"{address}/api/2.0/mlflow/{what}/search", body, headers)  # noqa: S310
    with urllib.request.urlopen(post, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
        return json.load(answer).get(what, [])


def collect_by_key(data: dict[str, Any], kind: str) -> dict[str, str]:
    """Returns a run's parameters or tags by name."""
    return {each["key"]: each["value"] for each in data.get(kind, [])}


def open_page(browser: Browser, address: str, search: Search) -> Page:
    """Opens the saved view in a browser without a history, and closes the chat that MLflow opens first."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 500 + ROW * len(search.children)})
    page.set_default_timeout(1000 * PATIENCE_SECONDS)
    page.goto(f"{address}{search.view}")
    page.locator(CLOSE_CHAT).first.click()
    return page


def capture_runs(page: Page, search: Search) -> None:
    """Shows every child, best first, as ``fednar ui NAME`` does."""
    page.locator(SIDEBAR).click()
    for child in search.children:
        wait_for_element(find_link(page, child), f"{child}, a child run, in the table of runs")
    for key in (search.metric, *search.keys):
        wait_for_element(page.get_by_text(key, exact=True), f"the column {key} in the table of runs")
    take_screenshot(page, "search-runs")


def capture_answer(page: Page, address: str, search: Search) -> None:
    """Shows the page of the search, which begins with what came out."""
    page.set_viewport_size({"width": WIDTH, "height": 950})  # down to the end of the picture
    page.goto(f"{address}/#/experiments/{search.experiment_id}/runs/{search.run_id}?{TRAINING}")
    wait_for_element(page.locator("strong"), "the answer in bold letters on the page of the search")
    wait_for_element(page.get_by_text("best/", exact=False), "the metrics of the best trial on the page of the search")
    page.get_by_text("Show more").first.click()
    take_screenshot(page, "search-answer")


def capture_comparison(page: Page, address: str) -> None:
    """Shows the runs of the newest comparison, best first."""
    parent = find_newest(address, "comparison")["info"]
    page.set_viewport_size({"width": WIDTH, "height": 820})
    view = f"runs?{TRAINING}&viewStateShareKey={parent['run_id'][:8]}"
    page.goto(f"{address}/#/experiments/{parent['experiment_id']}/{view}")
    wait_for_element(page.get_by_role("link", name="seed=0"), "a run of the comparison in the table of runs")
    take_screenshot(page, "comparison-runs")


def capture_charts(page: Page, address: str, search: Search) -> None:
    """Shows the children's rounds, one curve each."""
    page.set_viewport_size({"width": WIDTH, "height": 1190})  # two rows of charts
    page.goto(f"{address}{search.view}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill(f"^({'|'.join((*CURVES, search.metric))})$")
    for metric in (*CURVES, search.metric):
        wait_for_curves(page, metric, search.children)
    take_screenshot(page, "search-charts")


def capture_artifacts(page: Page, address: str, search: Search, directory: Path) -> None:
    """Shows the parent's files: the results as a table, and the report."""
    page.set_viewport_size({"width": WIDTH, "height": 900})
    page.goto(f"{address}/#/experiments/{search.experiment_id}/runs/{search.run_id}/artifacts?{TRAINING}")
    for name in ARTIFACTS:
        wait_for_element(find_artifact(page, name), f"the artifact {name} of the parent run")
    find_artifact(page, "report").click()
    wait_for_element(find_artifact(page, "report/index.html"), "the artifact report/index.html of the parent run")
    find_artifact(page, "results.json").click()
    row = page.get_by_role("row").filter(has_text=search.best)
    wait_for_element(row, f"the row of {search.best} in results.json, shown as a table")
    filled = [text for text in row.first.get_by_role("cell").all_inner_texts() if text not in ("", "null")]
    if len(filled) < RESULTS_COLUMNS + len(search.keys):
        sys.exit(f"results.json, shown as a table, lacks searched values: the row of {search.best} is {filled}")
    page.evaluate(RENAME, [str(directory), SHOWN_DIRECTORY])
    take_screenshot(page, "search-results")
    find_artifact(page, "report/index.html").click()
    wait_for_element(
        page.frame_locator("iframe").get_by_role("heading", name=search.name), "the report among the artifacts"
    )
    page.evaluate(RENAME, [str(directory), SHOWN_DIRECTORY])
    take_screenshot(page, "search-artifacts")


def capture_report(browser: Browser, report: Path, search: Search) -> None:
    """Opens the report from its file, without a network."""
    if not report.exists():
        sys.exit(f"{report} does not exist")
    context = browser.new_context(viewport={"width": 1100, "height": 1200}, offline=True)
    page = context.new_page()
    page.goto(report.as_uri())
    wait_for_element(page.get_by_role("heading", name=search.name), f"the search's name in {report}")
    if page.locator("figure svg").count() == 0:
        sys.exit(f"{report} lacks figures")
    curves = page.locator("figure").first.bounding_box()
    assert curves is not None
    page.set_viewport_size({"width": 1100, "height": round(curves["y"] + curves["height"]) + 20})
    take_screenshot(page, "search-report")


def find_link(page: Page, run: str) -> Locator:
    """Returns the link with a run's name in the table."""
    return page.get_by_role("link", name=run, exact=True)


def find_artifact(page: Page, path: str) -> Locator:
    """Returns a file in the tree of artifacts."""
    return page.locator(f"[data-testid='artifact-tree-node'][artifact-name='{Path(path).name}']")


def wait_for_element(element: Locator, what: str) -> None:
    """Waits for an element. Exits if it does not appear."""
    try:
        element.first.wait_for()
    except TimeoutError:
        sys.exit(f"not there after {PATIENCE_SECONDS:g} s: {what}")


def wait_for_curves(page: Page, metric: str, runs: Sequence[str]) -> None:
    """Waits until a chart has a curve for every run. Exits if it does not."""
    try:
        page.wait_for_function(f"asked => ({WITHOUT_CURVE})(asked).length === 0", arg=[metric, runs])
    except TimeoutError:
        missing = page.evaluate(WITHOUT_CURVE, [metric, runs])
        sys.exit(
            f"not there after {PATIENCE_SECONDS:g} s: in the chart of {metric}, the curves of {', '.join(missing)}"
        )


def take_screenshot(page: Page, name: str) -> None:
    """Takes a screenshot of the page once no spinner is left."""
    page.mouse.move(WIDTH / 2, 0)
    page.wait_for_function(f"{TURNING}.length === 0")
    page.evaluate(HIDE_TURNING)
    file = IMAGES / f"{name}.png"
    page.screenshot(path=file, style=UNCLUTTERED, animations="disabled")
    print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
