"""What people call columns of labels, prompts and responses."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RESPONSES = _words("output response completion chosen rejected output_A output_B")
"""Fields of a response, in any shape that is read."""
LABEL_WORDS = _words(
    "label labels reward rewards score scores rating ratings grade rank ranks ranking preference preferences preferred "
    "winner loser chosen rejected desirable accepted feedback vote votes upvotes better worse kto_tag thumbs_up "
    "thumb_up preferred_output non_preferred_output good bad correct incorrect quality verdict liked"
)
VERDICTS = dict.fromkeys(_words("good up desirable accepted"), True) | dict.fromkeys(
    _words("bad down undesirable rejected"), False
)
"""Texts that are a label, whatever their column is called."""
TRAINED_WORDS = _words("train loss loss_mask trainable")
"""What a field of a turn that says whether it is learned is called by others; here it is `weight`."""
CONTEXT_WORDS = _words("instruction instructions question query input inputs context history passage document")
"""What columns of a prompt, or of a part of it, are called."""
MEDIA_WORDS = _words("image images audio audios video videos")
"""Columns of what belongs to a prompt and is no text."""
PROMPT_WORDS = CONTEXT_WORDS | _words("user human problem request task user_prompt user_message post title")
RESPONSE_WORDS = _words("answer answers output response completion target reply solution generation")
NOT_TEXT = (LABEL_WORDS - RESPONSES - _words("feedback preferred_output non_preferred_output")) | _words(
    "split type weight margin tools template response_ids"
)
"""Fields in which "" or "nan", as a cell of CSV is, is no value."""
