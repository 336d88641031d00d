"""METEOR's alignment: which of all possible matches are used, found by the jar's beam search.

Source: Denkowski and Lavie 2014, section 2. Every word of either text may be in one match at most. Among
the alignments that keep to this, the search looks for the one that, in this order of importance,

    1  covers most words, counted as the jar's search does: exact matches in full, others by halves, rounded down
       for each side of each match (see `match` in metrics/meteor_match.py)
    2  has the fewest chunks, runs of matches that are adjacent and in the same order in both texts
    3  has the smallest sum of |start in hypothesis - start in reference|

It goes through the reference word by word, and for each partial alignment tries every match that begins
there, and to skip the word. After each word the partial alignments are sorted, and only the best 40 go on.

Worked example. Hypothesis "the cat the", reference "the cat": "cat" has one match, and no other touches its
words, so it is fixed beforehand. "the" may be the first or the third word of the hypothesis. Both cover the same
number of words; with the first all is one chunk, with the third two. The first wins.

The search is the jar's, including what looks accidental, because a tie or a full beam makes it show:
* Partial alignments that tie keep the order in which they were made: matches as listed, skipping last.
* The distance of a match is added not to the alignment that uses it but to those made *after* it at the
  same word (the next matches in the list, and the skip).
* A stem or synonym match is worth nothing in 1, and as a chunk of its own it costs one in 2. So it is used only
  where it adds no chunk, or where it is certain. "cats" and "cat" match twice, by stem and by synonym, so neither
  match is certain, and the two words by themselves score 0.
* The chunk that is still open is not counted, until the reference's last word has been passed.

What is not the jar's is the bookkeeping. Two partial alignments with the same words used, the same open chunk
and the same next word have the same future, and the worse of them can never win; but it takes up a place
among the 40. So they stay two costs in the beam but share one node, and each node is extended once.
And at certain words (fixed, or without a match) all partial alignments fare alike, except that the first of
these words may close a chunk: the search only stops where there is something to choose.

Left out: nothing is pruned that the jar would keep.
"""

from operator import itemgetter
from typing import NamedTuple

from metrics.meteor_match import Match

BEAM_SIZE = 40
NO_CHUNK = -1  # no chunk is open


class Arrival(NamedTuple):
    """How a partial alignment reaches the next stop, after using a match or skipping a word at this one."""

    chunk_end: int  # where in the hypothesis a match must begin to go on with the open chunk, or NO_CHUNK
    free_from: int  # the first word of the reference not passed yet; behind the stop if a long match reaches over it
    closed_at: int | None  # the certain word on the way that closed a chunk, if one did
    step: tuple[int, Match] | None  # where in the reference the match begins, and the match; None for skipping
    code: int  # chunk_end and free_from as one number


# A partial alignment: (future, used, arrival, parent). `used` are the words of the hypothesis in use that a later
# match might want, as bits; `future` is `used` and arrival.code as one number; `parent` the node it extends, or None.
# A plain tuple, since about a million of them are made to score one system.
Node = tuple
Entry = tuple[int, Node]  # of the beam: (cost, node)
cost_of = itemgetter(0)


def align(matches: list[list[Match]]) -> list[tuple[int, Match]]:
    """The best alignment: (start in the reference, match), from left to right.

    matches: for each of the reference's words the matches that begin there (Matcher.matches).
    """
    fixed, choices = _fix_certain(matches)
    chosen = [(start, match) for start, match in enumerate(fixed) if match is not None]
    if any(choices):
        chosen += _Search(fixed, choices).best()
        chosen.sort()
    return chosen


def _fix_certain(matches: list[list[Match]]) -> tuple[list[Match | None], list[list[Match]]]:
    """(for each word of the reference the match that is certain, for each word the matches to choose from).

    A match is certain if it is the only one of its place and no other match touches any of its words.
    """
    hyp_once = hyp_twice = ref_once = ref_twice = 0  # words, as bits, that at least one and at least two matches cover
    for start, choices in enumerate(matches):
        for _module, _hyp_start, _hyp_length, ref_length, hyp_words, _gain in choices:
            hyp_twice |= hyp_once & hyp_words
            hyp_once |= hyp_words
            ref_words = ((1 << ref_length) - 1) << start
            ref_twice |= ref_once & ref_words
            ref_once |= ref_words
    fixed: list[Match | None] = [None] * len(matches)
    open_choices = list(matches)
    for start, choices in enumerate(matches):
        if len(choices) == 1:
            only = choices[0]
            ref_words = ((1 << only.ref_length) - 1) << start
            if not (only.hyp_words & hyp_twice or ref_words & ref_twice):
                fixed[start] = only
                open_choices[start] = []
    return fixed, open_choices


class _Search:
    """The beam search for one pair of texts. A "stop" is a word of the reference at which matches begin that are not
    certain, and, as the last one, the reference's end."""

    def __init__(self, fixed: list[Match | None], choices: list[list[Match]]):
        self.fixed, self.choices = fixed, choices
        length = len(choices)
        self.stops = [start for start, at_start in enumerate(choices) if at_start] + [length]
        # Where in the hypothesis a fixed match ends, for the word of the reference behind it.
        self.fixed_end = [NO_CHUNK] * (length + 1)
        for start, match in enumerate(fixed):
            if match is not None:
                self.fixed_end[start + match.ref_length] = match.hyp_start + match.hyp_length
        # One number orders the beam: the gain first, then the chunks, then the distance, which is at most `distances`.
        distances, last_end = 0, max(self.fixed_end)
        for stop in self.stops[:-1]:
            for match in choices[stop]:
                distances += abs(stop - match.hyp_start)
                last_end = max(last_end, match.hyp_start + match.hyp_length)
        self.chunk_cost = distances + 1
        self.gain_cost = self.chunk_cost * (length + 2)
        self.end_bits = (last_end + 1).bit_length()  # an Arrival's code: free_from << end_bits | chunk_end + 1
        self.code_bits = self.end_bits + length.bit_length()  # a Node's future: used << code_bits | code

    def best(self) -> list[tuple[int, Match]]:
        """The matches that the best alignment chooses, from right to left."""
        wanted = {self.stops[-1]: 0}  # stop -> words of the hypothesis, as bits, that matches there or later touch
        for stop, next_stop in zip(self.stops[-2::-1], self.stops[:0:-1]):
            wanted[stop] = wanted[next_stop]
            for match in self.choices[stop]:
                wanted[stop] |= match.hyp_words

        beam: list[Entry] = [(0, (0, 0, self._arrive(NO_CHUNK, 0, self.stops[0], None), None))]
        for stop, next_stop in zip(self.stops, self.stops[1:]):
            # Of nodes with the same future the first, and so best, stands for all: it is what the reversal leaves.
            nodes = {node[0]: node for _cost, node in reversed(beam)}
            children, closing_places = self._children(nodes, stop, next_stop, wanted[next_stop])
            beam = [(cost + extra, child) for cost, node in beam for extra, child in children[node[0]]]
            beam.sort(key=cost_of)
            beam = self._close_chunks(beam[:BEAM_SIZE], closing_places)

        # Whoever still has a chunk open has one more than counted. min() takes the first of equals, as the jar does.
        finals = [(cost + (self.chunk_cost if node[2].chunk_end != NO_CHUNK else 0), node) for cost, node in beam]
        _best_cost, node = min(finals, key=cost_of)
        chosen = []
        while node is not None:
            _future, _used, arrival, node = node
            if arrival.step is not None:
                chosen.append(arrival.step)
        return chosen

    def _arrive(self, chunk_end: int, free_from: int, next_stop: int, step: tuple[int, Match] | None) -> Arrival:
        """Pass the certain words from `free_from` on, up to the next stop."""
        closed_at = None
        if free_from < next_stop:
            first = self.fixed[free_from]
            if chunk_end != NO_CHUNK and (first is None or first.hyp_start != chunk_end):
                closed_at = free_from
            chunk_end, free_from = self.fixed_end[next_stop], next_stop
        return Arrival(chunk_end, free_from, closed_at, step, free_from << self.end_bits | chunk_end + 1)

    def _children(
        self, nodes: dict[int, Node], stop: int, next_stop: int, wanted: int
    ) -> tuple[dict[int, list[Entry]], set[int]]:
        """All ways to go on from the word `stop`.

        Returns (a node's future -> [(extra cost, child)] in the jar's order, the words at which chunks close on
        the way to the next stop). The extra costs leave the latter out: `_close_chunks` counts them.
        """
        ways, places = [], set()
        for match in self.choices[stop]:
            hyp_start = match.hyp_start
            arrival = self._arrive(hyp_start + match.hyp_length, stop + match.ref_length, next_stop, (stop, match))
            gain, distance = self.gain_cost * match.gain, abs(stop - hyp_start)
            ways.append((match.hyp_words, hyp_start, gain, distance, arrival.code, arrival))
            places.add(arrival.closed_at)
        skip = self._arrive(NO_CHUNK, stop + 1, next_stop, None)
        code_bits, chunk_cost = self.code_bits, self.chunk_cost

        children = {}
        for future, node in nodes.items():
            _future, used, (chunk_end, free_from, _closed_at, _step, _code), _parent = node
            if free_from > stop:  # a long match reaches over this word
                arrival = self._arrive(chunk_end, free_from, next_stop, None)
                places.add(arrival.closed_at)
                used &= wanted
                children[future] = [(0, (used << code_bits | arrival.code, used, arrival, node))]
                continue
            children[future] = found = []
            distance = 0
            for hyp_words, hyp_start, gain, way_distance, code, arrival in ways:
                if not used & hyp_words:
                    extra = distance - gain
                    if hyp_start != chunk_end != NO_CHUNK:
                        extra += chunk_cost
                    distance += way_distance  # counted for the ways that follow, not for this one
                    now_used = (used | hyp_words) & wanted
                    found.append((extra, (now_used << code_bits | code, now_used, arrival, node)))
            if chunk_end != NO_CHUNK:
                distance += chunk_cost
            used &= wanted
            found.append((distance, (used << code_bits | skip.code, used, skip, node)))
        return children, places - {None}

    def _close_chunks(self, beam: list[Entry], places: set[int]) -> list[Entry]:
        """Count the chunks closed on the way to the next stop; `beam` is sorted, and so is the result.

        It matters in what order they close, if at several places: the jar sorts after each word, and each
        sorting leaves its mark on the order of those that tie.
        """
        chunk_cost = self.chunk_cost
        for place in sorted(places):
            beam = [(cost + chunk_cost, node) if node[2][2] == place else (cost, node) for cost, node in beam]
            beam.sort(key=cost_of)
        return beam
