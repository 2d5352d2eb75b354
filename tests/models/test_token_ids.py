"""Token ids of encoder and decoder, compared with hand-written ones."""

import torch

from dlip.models.token_ids import first_token, next_tokens, with_prompt


def test_first_token_and_next_words():
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    assert first_token(ids, 6)[:, 0].tolist() == [6, 6] and torch.equal(first_token(ids, 6)[:, 1:], ids[:, 1:])
    assert ids[0, 0] == 2
    assert next_tokens(ids, ids > 0).tolist() == [[7, 8, 3, -100], [9, 3, -100, -100]]


def test_prompt_is_read_but_has_no_loss():
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    read, mask, labels = with_prompt(ids, ids > 0, (20, 21))
    assert read.tolist() == [[2, 20, 21, 7, 8, 3], [2, 20, 21, 9, 3, 0]]
    assert mask.tolist() == [[True] * 6, [True] * 5 + [False]]
    assert labels.tolist() == [[-100, -100, 7, 8, 3, -100], [-100, -100, 9, 3, -100, -100]]
