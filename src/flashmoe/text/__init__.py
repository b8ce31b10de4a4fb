"""Words: text to token ids and back, and conversations to prompts.

Owns the tokenizer, chat templates and the streaming detokenizer; no model and no sampling.
Invariant: text from a message never becomes structure; only the chat template writes markup.
"""

from flashmoe.text.detokenizer import Detokenizer
from flashmoe.text.template import ChatTemplate, Segment
from flashmoe.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "Segment", "Tokenizer"]
