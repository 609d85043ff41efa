"""Histories of many rows in one tensor: which row an event belongs to, the newest of each, pieces of equal length.

Letters: B rows of a batch, L events of all rows, C width of one event.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def row_numbers(offsets: Tensor, events: int) -> Tensor:
    """(L,) the row each of so many events belongs to."""
    lengths = offsets.diff()
    return torch.arange(len(lengths), device=offsets.device).repeat_interleave(lengths, output_size=events)


def last_event(events_LC: Tensor, offsets: Tensor) -> Tensor:
    """(B, C) the newest event of each row; zeros where a row has none."""
    last_B = offsets[1:].long() - 1
    present_B1 = (offsets.diff() > 0).unsqueeze(1)
    if not len(events_LC):
        return events_LC.new_zeros(len(last_B), events_LC.shape[1])
    return torch.where(present_B1, events_LC.index_select(0, last_B.clamp(min=0)), 0.0)


@dataclass(frozen=True)
class Rows:
    """Which events belong to which row.

    Attributes:
        offsets: (B + 1,) int64, where the events of each row start.
        row_L: The row that each event belongs to.
        from_newest_L: How many events of the same row are newer than each event.
    """

    offsets: Tensor
    row_L: Tensor
    from_newest_L: Tensor

    @classmethod
    def of(cls, offsets: Tensor, events: int) -> "Rows":
        """The rows whose ``events``, L, start at int64 ``offsets``."""
        row_L = row_numbers(offsets, events)
        place_L = torch.arange(len(row_L), device=offsets.device)
        return cls(offsets, row_L, offsets[1:].index_select(0, row_L) - 1 - place_L)


@dataclass(frozen=True)
class Block:
    """The shape of one rectangle of :class:`Blocks`.

    Attributes:
        pieces: R.
        length: P, events of a piece.
        earlier: Events before a piece in its context: a whole window, or none where a history begins with the piece.
    """

    pieces: int
    length: int
    earlier: int

    @property
    def context(self) -> int:
        """K, the events before a piece and its own."""
        return self.earlier + self.length

    def distances(self, device: torch.device) -> Tensor:
        """(P, K) how much older each event of the context is than an event of the piece; negative if it is newer."""
        own_P1 = torch.arange(self.earlier, self.context, device=device).unsqueeze(1)
        return own_P1 - torch.arange(self.context, device=device)


@dataclass(frozen=True)
class Blocks:
    """All events of a batch in a few rectangles: the work grows with the events, not with the longest history.

    A history is cut into pieces of at most ``window`` events. Pieces of similar lengths form one block, which is as
    long as its longest piece, less than one and a half times as long as its shortest. A shorter piece repeats its last
    event at the end. Those repetitions are later than every event of the piece, so that a causal mask hides them.

    Attributes:
        events: Of all blocks, one after the other, the (R, P) events of the pieces.
        contexts: Likewise the (R, K) events of their contexts.
        places_L: Of each event, its position in ``events``.
    """

    blocks: tuple[Block, ...]
    events: Tensor
    contexts: Tensor
    places_L: Tensor

    @classmethod
    def of(cls, rows: Rows, window: int) -> "Blocks":
        """Cut histories into blocks."""
        offsets, device = rows.offsets, rows.offsets.device
        pieces_B = (offsets.diff() + window - 1) // window
        row_M = torch.arange(len(pieces_B), device=device).repeat_interleave(pieces_B)
        first_B = pieces_B.cumsum(0) - pieces_B
        number_M = torch.arange(len(row_M), device=device) - first_B[row_M]
        start_M = offsets[row_M] + number_M * window
        length_M = (offsets[row_M + 1] - start_M).clamp(max=window)
        group_M = 2 * _length_class(length_M) + (number_M > 0)
        size_G = torch.bincount(group_M)
        longest_G = torch.zeros_like(size_G).scatter_reduce(0, group_M, length_M, "amax")
        sizes, longest = torch.stack([size_G, longest_G]).tolist()  # together: each read waits for a GPU
        order_M = group_M.argsort(stable=True)
        base_M, done = torch.empty_like(start_M), 0
        blocks, events, contexts = [], [offsets[:0]], [offsets[:0]]
        for group, members in enumerate(torch.split(order_M, sizes)):
            if not len(members):
                continue
            block = Block(len(members), longest[group], window if group % 2 else 0)
            steps_K = torch.arange(-block.earlier, block.length, device=device)
            last_R1 = (start_M[members] + length_M[members] - 1).unsqueeze(1)
            context_RK = torch.minimum(start_M[members].unsqueeze(1) + steps_K, last_R1)
            base_M[members] = done + torch.arange(block.pieces, device=device) * block.length
            done += block.pieces * block.length
            blocks.append(block)
            events.append(context_RK[:, block.earlier :].flatten())
            contexts.append(context_RK.flatten())
        in_row_L = torch.arange(len(rows.row_L), device=device) - offsets[rows.row_L]
        places_L = base_M[first_B[rows.row_L] + in_row_L // window] + in_row_L % window
        return cls(tuple(blocks), torch.cat(events), torch.cat(contexts), places_L)


def _length_class(lengths: Tensor) -> Tensor:
    """Numbers the ranges 1, 2, 3, 4 to 5, 6 to 7, 8 to 11, 12 to 15, 16 to 23, ... to which lengths belong."""
    power = torch.frexp(lengths.double()).exponent.long() - 1
    return 2 * power + (2 * lengths >= 3 * 2**power)
