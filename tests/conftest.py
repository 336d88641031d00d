"""What several test files share."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers is here to compare with, not to download

import pytest
import torch
import transformers
from tiny import write_data, write_model

transformers.logging.set_verbosity_error()
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell lets what it starts in the background ignore Ctrl-C, which tests send


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On models this small several threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a tiny model (world / "model") and data (world / "data"). Read only."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_data(folder / "data")
    return folder


@pytest.fixture
def reference_gpt2():
    """reference_gpt2(folder): transformers' GPT-2 with the weights of a folder in this project's format."""

    def load(folder):
        model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return model.eval()

    return load
