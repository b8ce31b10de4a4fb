"""The chat in a terminal: what is typed, what is shown, and what is kept of a conversation.

``program`` is where it begins; ``talk`` has the conversation and knows no terminal.
"""
