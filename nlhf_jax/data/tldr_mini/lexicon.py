"""The closed world of `tldr_mini`: what can happen in a post, and the words it can be told with.

A post holds four facts: who makes trouble, what they do, since when, and what the author wants.
Each fact has one unmistakable keyword that occurs in no other list, so any text can be checked for
it.
"""

WHO = (
    "roommate",
    "boss",
    "sister",
    "brother",
    "neighbor",
    "landlord",
    "girlfriend",
    "boyfriend",
    "coworker",
    "teacher",
    "cousin",
    "uncle",
)

# Keyword (what the trouble is about) -> what the person "does", and what they "keep doing".
WHAT = {
    "food": ("steals food", "stealing food"),
    "drums": ("plays drums", "playing drums"),
    "money": ("borrows money", "borrowing money"),
    "dishes": ("breaks dishes", "breaking dishes"),
    "mail": ("opens mail", "opening mail"),
    "cigars": ("smokes cigars", "smoking cigars"),
    "parties": ("throws parties", "throwing parties"),
    "lies": ("tells lies", "telling lies"),
    "keys": ("loses keys", "losing keys"),
    "bills": ("hides bills", "hiding bills"),
    "pigeons": ("feeds pigeons", "feeding pigeons"),
    "homework": ("copies homework", "copying homework"),
}

SINCE = (
    "march",
    "june",
    "easter",
    "christmas",
    "college",
    "surgery",
    "graduation",
    "lockdown",
    "vacation",
    "retirement",
    "winter",
    "kindergarten",
)

NAMES = ("march", "june", "easter", "christmas")  # posts write these with a capital letter

WANT = (
    "advice",
    "revenge",
    "peace",
    "space",
    "answers",
    "respect",
    "proof",
    "honesty",
    "justice",
    "closure",
    "sympathy",
    "distance",
)

# What writers of summaries add of their own.
HEDGES = ("it seems", "i think", "i guess", "looks like")
GUESSES = ("jealous", "lonely", "bored", "broke", "drunk", "stressed")  # after "probably"
SENSATIONS = ("nightmare", "war", "disaster", "scandal", "horror")  # after the trouble's keyword
FILLERS = ("um", "basically", "honestly", "anyway")
SLANG = ("lol", "yikes", "smh", "dude")  # at the end
VAGUE_DEED = "does stuff"
VAGUE_TOPIC = "stuff"

FIRST_SENTENCES = (
    "My {who} {does} all the time.",
    "Lately my {who} keeps {doing}.",
    "Every day my {who} {does} again.",
)
SINCE_SENTENCES = (
    "It has been like this since {since}.",
    "This goes on since {since} and gets worse.",
    "There was no calm week since {since}.",
)
MOOD_SENTENCES = (
    "I am so tired.",
    "We talked twice but nothing changed.",
    "Nobody else takes it seriously.",
    "I cannot sleep anymore.",
    "My friends only laugh at me.",
)
WANT_SENTENCES = (
    "All I want is {want}.",
    "Now I just want {want}.",
    "How do I get some {want}?",
    "Will I ever get {want}?",
)
