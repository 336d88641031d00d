"""Fixtures shared by several test files."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers is only the reference; it must not download
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start; `one_thread` says why

import pytest
import torch
import transformers
from tiny import write_data, write_model

transformers.logging.set_verbosity_error()
# A shell makes its background processes ignore SIGINT, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Several threads make models this small slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a tiny model (world / "model") and data (world / "data"). Tests only read it."""
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
