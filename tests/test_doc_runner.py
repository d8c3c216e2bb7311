"""The documentation tests of the root conftest: good pages pass, and no bad block goes unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]

GOOD_PAGE = """
# A page

```python
from pathlib import Path

kept = sorted(path.name for path in Path("pictures").iterdir())
```

1. In a list:

   ```python
   assert kept == ["test", "train"]
   assert len(list(Path("pictures/train").glob("*/*.png"))) == 200
   assert len(list(Path("pictures/test").glob("*/*.png"))) == 50
   Path("made.txt").write_text("by the page")
   ```

````bash
# Comments are allowed.
git clone https://example.invalid/project.git
make demo
pip install "project[extra]"
python -c "import pathlib; \\
    assert pathlib.Path('made.txt').exists()"
````

```console
$ python -c "print('took 12.5 seconds'); print('done')"
took ... seconds
done
$ python -c "pass"
```

~~~toml
[table]
key = 1
~~~

```json
{"key": 1}
```

```text
anything } at all
```
"""

BAD_BLOCKS = {
    "a python error": "```python\nraise RuntimeError\n```",
    "python that does not compile": "```python\nx = = 1\n```",
    "a name that was never made": "```python\nprint(missing)\n```",
    "a command that fails": '```bash\npython -c "raise SystemExit(3)"\n```',
    "a failure before the last command": '```bash\npython -c "raise SystemExit(3)"\npython -c ""\n```',
    "a failure inside a pipe": '```bash\npython -c "raise SystemExit(3)" | cat\n```',
    "a command that is not known": "```bash\necho hello\n```",
    "a command hidden behind another": "```bash\nmake demo && clipretrieval evaluate\n```",
    "an install line with an open quote": '```bash\npip install "project\n```',
    "a console block without a prompt": "```console\npython -c pass\n```",
    "other output than the page shows": "```console\n$ python -c 'print(1)'\n2\n```",
    "toml that does not parse": "```toml\nkey =\n```",
    "json that does not parse": "```json\n{'key': 1}\n```",
    "an unknown language": "```rust\nfn main() {}\n```",
    "no language": "```\nx\n```",
    "a fence that is never closed": "```python\nx = 1\n",
    "a block in a list": "- ```python\n  raise RuntimeError\n  ```",
    "a block in a quotation": "> ```python\n> raise RuntimeError\n> ```",
}


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty project with this repository's root conftest and picture generator."""
    # NumPy cannot be imported twice, so it has to be there before pytester's runs come and go.
    load_digits()
    (pytester.path / "examples").mkdir()
    for name in ("conftest.py", "examples/digits_folders.py"):
        shutil.copy(ROOT / name, pytester.path / name)
    return pytester


def run(project: pytest.Pytester, page: str) -> pytest.RunResult:
    """Test a page with the given text."""
    (project.path / "page.md").write_text(page, encoding="utf-8")
    return project.runpytest_inprocess("page.md")


def test_a_good_page_passes_block_by_block(project: pytest.Pytester) -> None:
    """Every block of a page is one test, and blocks share names and a folder with pictures."""
    run(project, GOOD_PAGE).assert_outcomes(passed=7)


def test_the_summary_counts_the_blocks_that_ran(project: pytest.Pytester) -> None:
    """The last lines tell how many blocks ran, by language, failing ones too; text is counted apart."""
    page = GOOD_PAGE + "\n```python\nraise RuntimeError\n```\n"
    expected = "documentation: 7 blocks ran (3 python, 1 bash, 1 console, 1 toml, 1 json); 1 of text"
    run(project, page).stdout.fnmatch_lines([expected])


def test_bad_blocks_fail(project: pytest.Pytester) -> None:
    """A block that is wrong or cannot be checked fails, and the good block before it still passes."""
    pages = {f"{number}.md": name for number, name in enumerate(BAD_BLOCKS)}
    for page, name in pages.items():
        text = f"```python\nx = 1\n```\n\n{BAD_BLOCKS[name]}\n"
        (project.path / page).write_text(text, encoding="utf-8")
    outcomes: dict[str, list[str]] = {name: [] for name in BAD_BLOCKS}
    for report in project.inline_run(*pages).getreports("pytest_runtest_logreport"):
        if report.when == "call":
            outcomes[pages[report.location[0]]].append(report.outcome)
    assert outcomes == {name: ["passed", "failed"] for name in BAD_BLOCKS}


def test_pages_share_nothing(project: pytest.Pytester) -> None:
    """A page sees neither the names nor the files of another page."""
    (project.path / "other.md").write_text(
        "```python\nfrom pathlib import Path\nPath('made.txt').touch()\n```\n", encoding="utf-8"
    )
    page = (
        "```python\nassert 'Path' not in globals()\nimport os\n"
        "assert sorted(os.listdir()) == ['examples', 'pictures']\n```\n"
    )
    (project.path / "page.md").write_text(page, encoding="utf-8")
    project.runpytest_inprocess("other.md", "page.md").assert_outcomes(passed=2)
