"""Fetch METEOR's two files and pack the paraphrase table:  python -m metrics.meteor_download

An alternative to installing pycocoevalcap (104 MB, plus its requirements), which contains the same files.
Both files, 68 MB together, are checked against their known size and SHA-256 (metrics/meteor_tables.py).

Left out: Java. The jar is read as a zip file and never run.
"""

import argparse

from harness import download as downloads
from harness.files import exit_on_input_error
from metrics import meteor_tables
from metrics.meteor_tables import JAR, PARAPHRASES, SHA256, SIZE

ADDRESS = "https://github.com/tuetschek/e2e-metrics/raw/master/pycocoevalcap/meteor/"
URL = {JAR: ADDRESS + JAR, PARAPHRASES: ADDRESS + "data/" + PARAPHRASES}


def download() -> None:
    """Download the files that are missing into the cache folder. Raises InputError if that fails."""
    for name in (JAR, PARAPHRASES):
        downloads.download(URL[name], meteor_tables.download_folder() / name, size=SIZE[name], sha256=SHA256[name])


@exit_on_input_error
def main() -> None:
    argparse.ArgumentParser(
        description="Download METEOR 1.5's two files (68 MB) and pack the paraphrase table."
    ).parse_args()
    download()
    meteor_tables.load()
    print("METEOR's tables are ready")


if __name__ == "__main__":
    main()
