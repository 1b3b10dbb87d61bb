import pytest

from hf_common.secrets import clean_token, redacted


@pytest.mark.parametrize("token", ["hf_abc\n", " hf_abc", "hf_abc\r\n", "\thf_abc "])
def test_blanks_around_a_token_go(token):
    assert clean_token(token) == "hf_abc"
    assert clean_token(None) is None and clean_token(" \n") == ""


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\nb", "hf_a\0", "hf_ä", "hf_a\x7f"])
def test_what_is_no_token_is_refused_unseen(token):
    with pytest.raises(ValueError) as caught:
        clean_token(token)
    assert "hf_" not in str(caught.value)
    with pytest.raises(TypeError, match="bytes") as caught:
        clean_token(b"hf_abc")
    assert "hf_" not in str(caught.value)


def test_no_text_holds_a_token():
    text = "Illegal header value b'Bearer hf_AbCdEf123456\\n' and secret"
    assert redacted(text, "secret") == "Illegal header value b'Bearer hf_***\\n' and hf_***"
    assert redacted(ValueError("hf_short by hand"), None, "hf_short") == "hf_*** by hand"
    assert redacted("hf_robust and hf_common, shelf_AbCdEf123456") == "hf_robust and hf_common, shelf_AbCdEf123456"
