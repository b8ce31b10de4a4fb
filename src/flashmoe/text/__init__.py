"""Words: text to token ids and back, conversations to prompts, and replies to pieces.

Owns the tokenizer, chat templates, the streaming detokenizer and the reply parser; no model and no
sampling.
Invariant: text from a message never becomes structure; only the chat template writes markup.
"""

from flashmoe.text.detokenizer import Detokenizer
from flashmoe.text.parser import ReplyParser
from flashmoe.text.pieces import Call, Content, Piece, Reasoning
from flashmoe.text.syntax import Mark, Syntax
from flashmoe.text.template import ChatTemplate, Segment
from flashmoe.text.tokenizer import Tokenizer

__all__ = [
    "Call",
    "ChatTemplate",
    "Content",
    "Detokenizer",
    "Mark",
    "Piece",
    "Reasoning",
    "ReplyParser",
    "Segment",
    "Syntax",
    "Tokenizer",
]
