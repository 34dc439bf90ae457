/* peft_card.h - the model card of a plugin's folder (peft.h): README.md, for people and for the places that list models. */
#ifndef SPA_PEFT_CARD_H
#define SPA_PEFT_CARD_H

#include "plugin.h"

/* Markdown, malloc'd; NULL without memory. */
char *spa_peft_card(const struct spa_plugin *p);

#endif
