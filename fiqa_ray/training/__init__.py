"""How networks are trained: the loop, its two modes (head, finetune), PCNet, and what workers exchange."""
