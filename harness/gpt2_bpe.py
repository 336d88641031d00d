"""GPT-2's vocabulary for tiktoken: the published one, or the two files in a model's folder.

Both are byte-level BPE: merges in their order, and an id for each token. A Llama's is read in vocabulary.py.
"""

import os
from pathlib import Path

import tiktoken

from harness.download import OFFLINE, cache_dir
from harness.files import InputError
from harness.vocabulary import END

# The merges and the ids: under OpenAI's names and under those of the Hugging Face hub.
VOCABULARY_FILES = (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json"))


def load_gpt2_tokenizer(folder: Path) -> tiktoken.Encoding:
    """The vocabulary in a model's folder, if it has one, else the published one. Raises InputError.

    tiktoken downloads the published one (1.5 MB) once, into our cache folder.
    """
    own = [files for files in VOCABULARY_FILES if (folder / files[0]).exists()]
    return read_tokenizer(folder, *own[0]) if own else published_tokenizer()


def published_tokenizer() -> tiktoken.Encoding:
    """GPT-2's published vocabulary, from tiktoken's cache or from the network."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(cache_dir() / "tiktoken"))
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network (requests' errors are OSErrors), no permission, a damaged file
        raise InputError(
            f"GPT-2's vocabulary is not available ({type(error).__name__}): connect to the network once,"
            f" or set TIKTOKEN_CACHE_DIR (now {os.environ['TIKTOKEN_CACHE_DIR']}) to a folder that holds"
            f" tiktoken's copy. {OFFLINE}"
        ) from None


def read_tokenizer(folder: Path, merges: str, ids: str) -> tiktoken.Encoding:
    """A vocabulary from GPT-2's two files, the merges and the ids."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    caching = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # empty: read the files themselves, not tiktoken's cached copy
    try:
        ranks = data_gym_to_mergeable_bpe_ranks(str(folder / merges), str(folder / ids))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise InputError(
            f"{folder}: its {merges} and {ids} do not form a vocabulary ({type(error).__name__}): fetch both again"
        ) from None
    finally:
        if caching is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = caching
    pattern = tiktoken_pattern()
    return tiktoken.Encoding(folder.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: len(ranks)})


def tiktoken_pattern() -> str:
    """The regular expression that splits text before BPE, from tiktoken: contractions, words, numbers, signs, space."""
    from tiktoken_ext.openai_public import r50k_pat_str

    return r50k_pat_str
