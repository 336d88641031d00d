"""Fetch METEOR's two files and pack the paraphrase table:  python -m metrics.meteor_download

For those who do not want to install pycocoevalcap (104 MB, and its requirements), which holds the same files.
Both are checked against their known size and SHA-256 (metrics/meteor_tables.py); 68 MB in all.

Left out: Java. The jar is only read as the zip file it is.
"""

import argparse

from harness import download as downloads
from harness.files import exit_on_input_error
from metrics import meteor_tables
from metrics.meteor_tables import JAR, PARAPHRASES, SHA256, SIZE

ADDRESS = "https://github.com/tuetschek/e2e-metrics/raw/master/pycocoevalcap/meteor/"
URL = {JAR: ADDRESS + JAR, PARAPHRASES: ADDRESS + "data/" + PARAPHRASES}


def download() -> None:
    """Fetch what is not there yet into the cache folder. Raises InputError when that fails."""
    for name in (JAR, PARAPHRASES):
        downloads.download(URL[name], meteor_tables.download_folder() / name, size=SIZE[name], sha256=SHA256[name])


@exit_on_input_error
def main() -> None:
    argparse.ArgumentParser(description="Fetch METEOR 1.5's two files (68 MB) and get them ready.").parse_args()
    download()
    meteor_tables.load()
    print("METEOR's tables are ready")


if __name__ == "__main__":
    main()
