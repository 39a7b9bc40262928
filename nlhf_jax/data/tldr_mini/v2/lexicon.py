"""The closed world of `tldr_mini`, version 2: what can happen in a post, and how it is told.

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
    "cousin",
)

# Keyword (what the trouble is about) -> what the person "does", and what they "have been doing".
WHAT = {
    "food": ("steals my food", "stealing my food"),
    "drums": ("plays my drums", "playing my drums"),
    "money": ("borrows my money", "borrowing my money"),
    "dishes": ("breaks my dishes", "breaking my dishes"),
    "mail": ("opens my mail", "opening my mail"),
    "cigars": ("smokes my cigars", "smoking my cigars"),
    "clothes": ("wears my clothes", "wearing my clothes"),
    "keys": ("loses my keys", "losing my keys"),
    "bike": ("rides my bike", "riding my bike"),
    "homework": ("copies my homework", "copying my homework"),
}

SINCE = (
    "March",
    "June",
    "August",
    "Easter",
    "Christmas",
    "Halloween",
    "Monday",
    "Friday",
    "summer",
    "graduation",
)

# Keyword -> what the author wants.
WANT = {
    "apology": "an apology",
    "advice": "some advice",
    "peace": "some peace",
    "space": "some space",
    "respect": "some respect",
    "answers": "some answers",
    "privacy": "some privacy",
    "sympathy": "some sympathy",
    "truth": "the truth",
    "refund": "a refund",
}

# What writers of summaries add of their own.
FEELINGS = ("It breaks my heart that", "I am so hurt that", "I could cry because")
SLOPPY_STARTS = ("So basically", "So like", "Well anyway")
SLOPPY_ENDS = ("or whatever", "and stuff", "or something")

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
    "Talking did not help.",
    "Nobody takes it seriously.",
    "My friends just laugh.",
)
WANT_SENTENCES = (
    "All I want is {want}.",
    "Now I just want {want}.",
    "How do I get {want}?",
    "Will I ever get {want}?",
)
