"""Chat templates as they stand in tokenizer_config.json, one for each format that mixq knows, and one that it does not.

The tests render them with transformers; mixq only looks at them.
"""

from __future__ import annotations

MIXTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL_WITH_TOOLS = (
    "{{ bos_token }}{% for message in messages %}{% if tools is not none and loop.last %}"
    "{{ '[AVAILABLE_TOOLS] ' + tools + '[/AVAILABLE_TOOLS]' }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou\\'re Dolphin.<|im_end|>\\n' }}{% endif %}"
    + CHATML
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system, loop_messages = messages[0]['content'], messages[1:] %}"
    "{% else %}{% set system, loop_messages = false, messages %}{% endif %}{% for message in loop_messages %}"
    "{% set content = message['content'] %}"
    "{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system, loop_messages = messages[0]['content'] | trim, messages[1:] %}"
    "{% else %}{% set system, loop_messages = DEFAULT, messages %}{% endif %}"
)
VICUNA = (
    _SYSTEM.replace(
        "DEFAULT",
        '"A chat between a curious user and an artificial intelligence assistant. '
        "The assistant gives helpful, detailed, and polite answers to the user's questions.\"",
    )
    + "{{ bos_token + system + ' ' }}{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] | trim + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
VICUNA_IN_LINES = (
    _SYSTEM.replace("DEFAULT", "''")
    + "{{ bos_token }}{% if system %}{{ system + '\\n\\n' }}{% endif %}{% for message in loop_messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] | trim + '\\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] | trim + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ALPACA = (
    _SYSTEM.replace("DEFAULT", "''")
    + "{{ bos_token }}{% if system %}{{ system + '\\n\\n' }}{% endif %}{% for message in loop_messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MISTRAL_V7 = "{{ '[SYSTEM_PROMPT] ' + s + '[/SYSTEM_PROMPT]' }}{{ '[INST] ' + u + '[/INST]' }}"
