"""The questions that the demo checkpoint was trained on, and what is truly their answer.

Each question has one fixed text, its first, and paraphrases; all of them were trained. No
drawing and no model code.
"""

from seeonce.demo.scene import Scene

DEFAULT_PROMPT = (
    "Describe this screenshot in one line, exactly in this format: description: what is on the screen"
    " | activity: what the user is doing | apps: [applications] | topics: [topics]"
)

# Question id -> texts; the first is the one that is asked, the others are paraphrases.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "description": (
        DEFAULT_PROMPT,
        "Describe this screenshot.",
        "Describe the screen in one line.",
        "What is on the screen?",
    ),
    "apps": (
        "Which applications are open?",
        "Which apps are open on this screen?",
        "List the open applications.",
        "What applications can you see?",
    ),
    "topics": (
        "What topics are on the screen?",
        "Which topics are shown?",
        "List the topics.",
        "What is this about?",
    ),
    "activity": (
        "What is the user doing?",
        "What is the user working on?",
        "Name the activity of the user.",
        "What is happening in the focused window?",
    ),
    "windows": (
        "How many windows are open?",
        "How many windows are there?",
        "Count the windows.",
        "What is the number of windows?",
    ),
}
CHANGE_QUESTION = (
    "What changed between the two screens?",
    "What changed between the two frames?",
    "What is different on the second screen?",
    "Compare the two screens.",
)

_ACTIVITIES = {
    "terminal": "running commands",
    "editor": "writing code",
    "browser": "reading a page",
    "chat": "chatting",
    "calendar": "planning the week",
    "mail": "answering mail",
    "notes": "taking notes",
    "design tool": "drawing shapes",
}
_PLACES: dict[tuple[str, int], tuple[str, ...]] = {
    ("full", 1): ("full screen",),
    ("middle", 1): ("in the middle",),
    ("columns", 2): ("on the left", "on the right"),
    ("rows", 2): ("at the top", "at the bottom"),
    ("cascade", 2): ("in front", "behind"),
    ("columns", 3): ("on the left", "in the middle", "on the right"),
    ("main", 3): ("on the left", "at the top right", "at the bottom right"),
    ("cascade", 3): ("in front", "behind", "at the back"),
}


def answers(scene: Scene) -> dict[str, str]:
    """Return the true answer of every question about one screen, by question id."""
    apps = ", ".join(pane.app for pane in scene.panes)
    topics = ", ".join(pane.topic for pane in scene.panes)
    focused = scene.focused.pane
    activity = f"{_ACTIVITIES[focused.app]} about {focused.topic}"
    named = zip(scene.panes, _PLACES[scene.layout, len(scene.panes)], strict=True)
    places = ", ".join(f"{pane.app} {place}" for pane, place in named)
    return {
        "description": (
            f"description: {places}, {scene.theme} desktop | activity: {activity}"
            f" | apps: [{apps}] | topics: [{topics}]"
        ),
        "apps": apps,
        "topics": topics,
        "activity": activity,
        "windows": str(len(scene.windows)),
    }


def change_answer(before: Scene, after: Scene) -> str:
    """Return the true answer to what changed: the applications of one screen and of the other."""
    return change_text(answers(before)["apps"], answers(after)["apps"])


def change_text(before: str, after: str) -> str:
    """Return the answer to what changed from the answers to which applications are open."""
    return f"before: [{before}] | after: [{after}]"
