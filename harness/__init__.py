"""The program around the method: what a script needs besides the mathematics.

settings.py          the flags of the command line, and their defaults
evaluation_flags.py  the flags of evaluate.py, and which belong together
machine.py           device, number format, a description of the machine
door.py              the one place that chooses between the plain path and fast/
runs.py              a run's folder: its settings, its model, what it learned
hooks.py             attaches what was learned to a model, and detaches it
parts.py             the parts of --mode prefix+lora: made, attached, saved and counted as one
datasets.py          the data sets that --data names, and how each is scored
checkpoints.py       logs and checkpoints that survive a kill
loop.py              what is hung on train.py's loop: data, logs, validation, checkpoints
shelves.py           a shelf of tasks in a folder
tables.py            a file of requests in, a file of texts out
report.py            the printed table of scores
comparison.py        files of scores: intervals, each output, two files of outputs
progress.py          a line on the terminal: how far a long job is
signals.py           Ctrl-C and shutdown end a run after its current step
ranks.py             several processes, one run (torchrun)
files.py             errors in one sentence, atomic writes, locks
download.py          downloads that resume and are verified
safetensors.py       the safetensors format
tensorflow.py        TensorFlow's checkpoint format
gguf.py              the GGUF format
tokenizers.py        a model's vocabulary, GPT-2's or a Llama's
gpt2_bpe.py          GPT-2's vocabulary, published or in a folder
vocabulary.py        byte-level BPE from a GGUF file or tokenizer.json
llama_files.py       a Llama's files: where they are, configuration, names
peft_files.py        PEFT's adapter folders, read and written
hub_files.py         a model as a folder of the Hugging Face hub's, written
export.py            the command that writes both: python -m harness.export
xml_reader.py        XML with line numbers
webnlg_files.py      WebNLG's files and their checksums
"""
