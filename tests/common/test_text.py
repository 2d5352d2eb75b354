"""Text as terminals and pages can show it."""

from transformers import PreTrainedTokenizerFast

from dlip.common.text import MAX_CHARACTERS, join_words, one_line, plural, split_cjk, three_digits


def test_a_long_text_loses_its_middle():
    line = one_line("there is no model " + "\0" * 5000 + "; name another")
    assert len(line) < MAX_CHARACTERS + 10
    assert line.startswith("there is no model \\x00") and line.endswith("\\x00; name another") and " ... " in line


def test_counts_and_their_nouns_agree():
    assert [plural(n, "fault") for n in (0, 1, 2, 1000)] == ["0 faults", "1 fault", "2 faults", "1,000 faults"]


def test_apostrophes_are_joined_as_in_transformers():
    texts = ["a man ' s dog doesn ' t bark", "they ' re at 5 o ' clock", "the dogs ' bowl", "' hi ' he said", "a ' ' b"]
    expected = [PreTrainedTokenizerFast.clean_up_tokenization(None, text) for text in texts]
    assert [join_words(text) for text in texts] == expected and expected[0] == "a man's dog doesn't bark"


def test_chinese_and_japanese_characters_are_joined_and_split():
    assert join_words("2 只 狗 ， 在 跑 。 개가 달린다") == "2 只狗，在跑。 개가 달린다"
    assert join_words("犬 が 走 る 、 バナナ a dog") == "犬が走る、バナナ a dog"
    assert split_cjk("2只狗，在跑。 개가 a dog").split() == ["2", "只", "狗", "在", "跑", "개가", "a", "dog"]
    assert split_cjk("人々のバナナー").split() == [*"人々のバナナー"]


def test_three_digits():
    values = (12345.6, 99.95, 99.94, 12.5, 0.0321, 0.001, 3e-7)
    assert [three_digits(v) for v in values] == ["12,346", "100", "99.9", "12.5", "0.0321", "0.00100", "<0.001"]
