"""The tasks of `benchmarks.drafts`: what models are asked, and what base models go on with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        question: for a model that chats.
        beginning: for a base model, which goes on with it.
    """

    name: str
    question: str
    beginning: str


_TEXT = (
    "The old lighthouse stands on a rock at the mouth of the river Aven. It was built in 1874 by "
    "Margaret Holloway, who had lost two brothers at sea. Every evening she climbed the hundred "
    "and twelve steps, lit the lamp, and wrote the names of the passing ships in a blue book. When "
    "the storm of 1891 broke the windows, Margaret held the lamp in her hands until the morning. "
    "Today the blue book lies in the museum of the town, and children read the names of the ships "
    "aloud on the first Sunday of May."
)
_CSV = """date,city,temperature,humidity,wind
2024-03-01,Hamburg,7.5,81,north-west
2024-03-01,Munich,9.0,64,south
2024-03-01,Berlin,8.2,70,west
2024-03-02,Hamburg,6.9,84,north-west
2024-03-02,Munich,10.1,60,south
2024-03-02,Berlin,8.8,68,west
2024-03-03,Hamburg,7.2,80,north-west
2024-03-03,Munich,11.3,58,south
2024-03-03,Berlin,9.4,66,west
"""
_JSON = """{
  "name": "weather-station",
  "version": "1.4.2"
  "sensors": [
    {"id": "t1", "kind": "temperature", "unit": "celsius", "interval": 60},
    {"id": "h1", "kind": "humidity", "unit": "percent", "interval": 60}
    {"id": "w1", "kind": "wind", "unit": "meters per second", "interval": 10},
  ],
  "upload": {"host": "stations.example.org", "port": 443, "retries": 5}
}"""

REPEATING = (
    Task(
        "repeat a text",
        f"Repeat the following text word for word:\n\n{_TEXT}",
        f"The text:\n\n{_TEXT}\n\nThe same text once more, word for word:\n\n",
    ),
    Task(
        "continue a CSV",
        f"Continue this CSV file with the next five days. Write only lines of the file:\n\n{_CSV}",
        _CSV,
    ),
    Task(
        "change a name",
        "Rewrite the following text, with the name Eleanor instead of Margaret, and change "
        f"nothing else:\n\n{_TEXT}",
        f"The text:\n\n{_TEXT}\n\nThe same text with the name Eleanor instead of Margaret:\n\n"
        + _TEXT.replace("Margaret", "Eleanor")[:160],
    ),
    Task(
        "correct JSON",
        "Two commas are missing in this JSON, and one is too many. Write the whole corrected JSON "
        f"and nothing else:\n\n```json\n{_JSON}\n```",
        f"JSON with mistakes:\n\n```json\n{_JSON}\n```\n\nThe corrected JSON:\n\n```json\n{{\n",
    ),
)
SUMMARY = Task(
    "sum up a text",
    f"Sum up the following text in three sentences:\n\n{_TEXT}",
    f"The text:\n\n{_TEXT}\n\nA summary of the text in three sentences:\n\n",
)
FREE = (
    Task(
        "tell a story",
        "Write a short story about a dog who finds a key in the garden.",
        "A dog found a key in the garden. It was a small key, and",
    ),
    Task(
        "explain",
        "Explain to a child how a rainbow comes about.",
        "How does a rainbow come about? The light of the sun",
    ),
    Task(
        "give advice",
        "I want to sleep better. What can I do?",
        "Ten ways to sleep better\n\nMany people lie awake at night. The first thing to do is",
    ),
)
TASKS = (*REPEATING, SUMMARY, *FREE)
