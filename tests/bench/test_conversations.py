from unsloth_accel.bench.conversations import conversations


def test_a_row_asks_about_its_image_and_answers_with_its_text() -> None:
    with_image, text_only = (row["messages"] for row in conversations(["alpha beta", "gamma"], [336, None]))
    assert [part["type"] for part in with_image[0]["content"]] == ["image", "text"]
    assert with_image[0]["content"][0]["image"].size == (336, 336)
    assert with_image[0]["content"][0]["image"].mode == "RGB"
    assert [part["type"] for part in text_only[0]["content"]] == ["text"]
    answers = [messages[1]["content"] for messages in (with_image, text_only)]
    assert answers == [[{"type": "text", "text": "alpha beta"}], [{"type": "text", "text": "gamma"}]]
    assert [message["role"] for message in with_image] == ["user", "assistant"]


def test_many_rows_hold_few_images() -> None:
    rows = conversations(["alpha"] * 6, [224, 336, None] * 2)
    images = [part["image"] for row in rows for part in row["messages"][0]["content"] if part["type"] == "image"]
    assert len(images) == 4
    assert len({id(image) for image in images}) == 2
