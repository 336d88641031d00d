"""XML files, read with line numbers for error messages, and without what makes XML from strangers dangerous."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.parsers import expat

from harness.files import InputError, read_text

LINE = "line of the file"  # an attribute that no XML can have: its name holds spaces


def parse(path: Path) -> ElementTree.Element:
    """The tree of an XML file; each element has its line number in the attribute LINE.

    A document type declaration is refused: a few nested entities in one expand to gigabytes.
    Raises InputError for anything but well-formed XML in UTF-8.
    """

    def start(tag, attributes):
        builder.start(tag, attributes | {LINE: str(parser.CurrentLineNumber)})

    def refuse(*_declaration):
        raise InputError(
            f"{path}, line {parser.CurrentLineNumber}: it declares a DOCTYPE, which WebNLG's files do not; delete it"
        )

    text = read_text(path)
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise InputError(
            f"{path}, line {error.lineno}: not XML ({expat.ErrorString(error.code)});"
            " fetch it again if it is cut short or damaged"
        ) from None
    return builder.close()
