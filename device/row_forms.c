/* row_forms.c - one row of a training file in any of its forms (row_forms.h). In: JSON. Out: parts, or a sentence. */
#include "row_forms.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int spa_row_refuse(const struct spa_row_place *at, const char *format, ...)
{
    int n = snprintf(at->why, at->why_len, "%s line %u: ", at->path, at->line);
    if (n >= 0 && (size_t)n < at->why_len) {
        va_list args;
        va_start(args, format);
        vsnprintf(at->why + n, at->why_len - (size_t)n, format, args);
        va_end(args);
    }
    return -1;
}

const char *spa_row_type_name(const json_t *v)
{
    static const char *const names[] = { "an object", "an array", "a string", "a number", "a number", "a boolean", "a boolean",
                                         "null" };
    return names[json_typeof(v)];
}

/* ---- parts ---- */

struct list {
    const struct spa_row_place *at;
    struct spa_part *parts;
    size_t n;
};

static bool is_empty(const json_t *string)
{
    return strspn(json_string_value(string), " \t\r\n") == json_string_length(string);
}

/* A field that must be a string; NULL after a sentence. */
static const json_t *need_string(const struct spa_row_place *at, const json_t *object, const char *prefix, const char *field)
{
    const json_t *v = json_object_get(object, field);
    if (!v)
        spa_row_refuse(at, "the field %s%s is missing", prefix, field);
    else if (!json_is_string(v))
        spa_row_refuse(at, "the field %s%s is %s, not a string", prefix, field, spa_row_type_name(v));
    else
        return v;
    return NULL;
}

/* A field that may be a string; -1 after a sentence, when it is something else. */
static int may_string(const struct spa_row_place *at, const json_t *object, const char *field, const json_t **out)
{
    const json_t *v = json_object_get(object, field);
    *out = json_is_string(v) ? v : NULL;
    return !v || json_is_string(v) || json_is_null(v) ? 0 : spa_row_refuse(at, "the field %s is %s, not a string", field, spa_row_type_name(v));
}

static int add(struct list *l, uint8_t kind, bool loss, const json_t *text)
{
    if (l->n == SPA_PARTS_MAX)
        return spa_row_refuse(l->at, "the row has more than %d turns", SPA_PARTS_MAX);
    l->parts[l->n++] = (struct spa_part){ .kind = kind, .loss = loss, .bytes = (const uint8_t *)json_string_value(text),
                                          .len = (uint32_t)json_string_length(text) };
    return 0;
}

/* The field `system` of rows that have no turn for it; an empty one is none. */
static int add_system(struct list *l, const json_t *row)
{
    const json_t *system;
    if (may_string(l->at, row, "system", &system) != 0)
        return -1;
    return system && !is_empty(system) ? add(l, SPA_PART_SYSTEM, false, system) : 0;
}

/* ---- turns: {"role", "content"} or {"from", "value"} ---- */

static uint8_t kind_of(const char *role)
{
    static const struct { const char *name; uint8_t kind; } roles[] = {
        { "system", SPA_PART_SYSTEM }, { "developer", SPA_PART_SYSTEM }, { "user", SPA_PART_USER }, { "human", SPA_PART_USER },
        { "assistant", SPA_PART_ASSISTANT }, { "gpt", SPA_PART_ASSISTANT }, { "chatgpt", SPA_PART_ASSISTANT } };
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(role, roles[i].name) == 0)
            return roles[i].kind;
    return 0;
}

/* A turn's text: a string, or a list of one part {"type": "text", "text": "..."}. NULL after a sentence. */
static const json_t *need_content(const struct spa_row_place *at, const json_t *turn, const char *prefix, const char *field)
{
    const json_t *content = json_object_get(turn, field), *part = json_array_get(content, 0);
    const char *type = json_string_value(json_object_get(part, "type"));
    if (!json_is_array(content))
        return need_string(at, turn, prefix, field);
    if (json_array_size(content) == 1 && type && strcmp(type, "text") == 0 && json_is_string(json_object_get(part, "text")))
        return json_object_get(part, "text");
    spa_row_refuse(at, "the field %s%s is a list of something else than one part of text", prefix, field);
    return NULL;
}

/* "weight": 0 or 1, or "train": true or false, says whether an answer carries loss; neither: it does. */
static int take_weight(const struct spa_row_place *at, const json_t *turn, const char *prefix, bool *out)
{
    const json_t *weight = json_object_get(turn, "weight"), *train = json_object_get(turn, "train");
    const double w = json_number_value(weight);
    if (weight && (!json_is_number(weight) || (w != 0 && w != 1)))
        return spa_row_refuse(at, "the field %sweight is neither 0 nor 1", prefix);
    if (train && !json_is_boolean(train))
        return spa_row_refuse(at, "the field %strain is %s, not true or false", prefix, spa_row_type_name(train));
    *out = (!weight || w == 1) && (!train || json_is_true(train));
    return 0;
}

static int take_turn(struct list *l, const char *field, const json_t *turn, size_t index, bool answers_carry_loss)
{
    char prefix[48];
    bool loss = true;
    snprintf(prefix, sizeof prefix, "%s[%zu].", field, index);
    if (!json_is_object(turn))
        return spa_row_refuse(l->at, "the field %s[%zu] is %s, not an object", field, index, spa_row_type_name(turn));
    const bool from = json_object_get(turn, "from") != NULL || (strcmp(field, "conversations") == 0 && !json_object_get(turn, "role"));
    const json_t *role = need_string(l->at, turn, prefix, from ? "from" : "role");
    const json_t *content = role ? need_content(l->at, turn, prefix, from ? "value" : "content") : NULL;
    if (!content || take_weight(l->at, turn, prefix, &loss) != 0)
        return -1;
    const uint8_t kind = kind_of(json_string_value(role));
    if (!kind)
        return spa_row_refuse(l->at, "the field %s%s is '%.40s', not system, user or assistant", prefix, from ? "from" : "role",
                              json_string_value(role));
    loss = loss && kind == SPA_PART_ASSISTANT && answers_carry_loss;
    if (loss && is_empty(content))
        return spa_row_refuse(l->at, "the field %s%s is an empty answer", prefix, from ? "value" : "content");
    if (kind == SPA_PART_SYSTEM && is_empty(content))
        return 0;
    return add(l, kind, loss, content);
}

static int take_turns(struct list *l, const char *field, const json_t *turns, bool answers_carry_loss)
{
    if (!json_is_array(turns))
        return spa_row_refuse(l->at, "the field %s is %s, not an array", field, spa_row_type_name(turns));
    const size_t n = json_array_size(turns);
    if (n == 0 || n > SPA_PARTS_MAX)
        return spa_row_refuse(l->at, "the field %s has %zu entries; 1 to %d are allowed", field, n, SPA_PARTS_MAX);
    for (size_t i = 0; i < n; i++)
        if (take_turn(l, field, json_array_get(turns, i), i, answers_carry_loss) != 0)
            return -1;
    return 0;
}

static int take_chat(struct list *l, const char *field, const json_t *row)
{
    const json_t *turns = json_object_get(row, field);
    if (strcmp(field, "conversations") == 0 && add_system(l, row) != 0)
        return -1;
    const bool has_system = l->n == 1;
    if (take_turns(l, field, turns, true) != 0)
        return -1;
    if (has_system && l->n > 1 && l->parts[1].kind == SPA_PART_SYSTEM)
        return spa_row_refuse(l->at, "the row has both the field system and a system turn; which one is meant?");
    if (l->n == 0 || l->parts[l->n - 1].kind != SPA_PART_ASSISTANT)
        return spa_row_refuse(l->at, "the field %s[%zu].%s is not assistant: the row ends without an answer", field, json_array_size(turns) - 1,
                              json_object_get(json_array_get(turns, json_array_size(turns) - 1), "from") ? "from" : "role");
    return 0;
}

/* ---- alpaca ---- */

/* Earlier turns: [["question", "answer"], ...]. */
static int add_history(struct list *l, const json_t *history)
{
    if (history && !json_is_null(history) && !json_is_array(history))
        return spa_row_refuse(l->at, "the field history is %s, not an array", spa_row_type_name(history));
    for (size_t i = 0; i < json_array_size(history); i++) {
        const json_t *pair = json_array_get(history, i), *q = json_array_get(pair, 0), *a = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !json_is_string(q) || !json_is_string(a))
            return spa_row_refuse(l->at, "the field history[%zu] is not a pair of strings, question and answer", i);
        if (is_empty(a))
            return spa_row_refuse(l->at, "the field history[%zu] has an empty answer", i);
        if (add(l, SPA_PART_USER, false, q) != 0 || add(l, SPA_PART_ASSISTANT, true, a) != 0)
            return -1;
    }
    return 0;
}

static int take_alpaca(struct list *l, const json_t *row, char **owned)
{
    const json_t *input, *instruction = need_string(l->at, row, "", "instruction");
    const json_t *output = instruction ? need_string(l->at, row, "", "output") : NULL;
    if (!output || may_string(l->at, row, "input", &input) != 0 || add_system(l, row) != 0 ||
        add_history(l, json_object_get(row, "history")) != 0)
        return -1;
    if (is_empty(instruction))
        return spa_row_refuse(l->at, "the field instruction is empty");
    if (is_empty(output))
        return spa_row_refuse(l->at, "the field output is an empty answer");
    if (add(l, SPA_PART_USER, false, instruction) != 0 || add(l, SPA_PART_ASSISTANT, true, output) != 0)
        return -1;
    const size_t n = json_string_length(instruction), more = input ? json_string_length(input) : 0;
    if (more == 0)
        return 0;
    *owned = malloc(n + 2 + more);
    if (!*owned)
        return spa_row_refuse(l->at, "there is not enough memory for the row");
    memcpy(*owned, json_string_value(instruction), n);
    memcpy(*owned + n, "\n\n", 2);
    memcpy(*owned + n + 2, json_string_value(input), more);
    struct spa_part *user = &l->parts[l->n - 2];
    user->bytes = (const uint8_t *)*owned;
    user->len = (uint32_t)(n + 2 + more);
    return 0;
}

/* ---- raw text ---- */

static int take_prompt(struct list *l, const json_t *row)
{
    const json_t *prompt = json_object_get(row, "prompt");
    if (json_is_array(prompt)) {   /* turns; those of the completion alone carry loss */
        const json_t *completion = json_object_get(row, "completion");
        if (!completion)
            return spa_row_refuse(l->at, "the field completion is missing");
        if (take_turns(l, "prompt", prompt, false) != 0 || take_turns(l, "completion", completion, true) != 0)
            return -1;
        return l->n > 0 && l->parts[l->n - 1].kind == SPA_PART_ASSISTANT
                   ? 0 : spa_row_refuse(l->at, "the field completion does not end with a turn of the assistant");
    }
    const json_t *completion = need_string(l->at, row, "", "prompt") ? need_string(l->at, row, "", "completion") : NULL;
    if (!completion)
        return -1;
    if (is_empty(completion))
        return spa_row_refuse(l->at, "the field completion is an empty answer");
    return add(l, SPA_PART_TEXT, false, prompt) != 0 || add(l, SPA_PART_TEXT, true, completion) != 0 ? -1 : 0;
}

static int take_text(struct list *l, const json_t *row)
{
    const json_t *text = need_string(l->at, row, "", "text");
    if (!text)
        return -1;
    return is_empty(text) ? spa_row_refuse(l->at, "the field text is empty") : add(l, SPA_PART_TEXT, true, text);
}

/* ---- a row ---- */

static int take_row(struct list *l, const json_t *row, char **owned)
{
    static const char *const forms[] = { "messages", "conversations", "instruction" };
    const char *form = NULL;
    if (!json_is_object(row))
        return spa_row_refuse(l->at, "the row is %s, not an object", spa_row_type_name(row));
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (!json_object_get(row, forms[i]))
            continue;
        if (form)
            return spa_row_refuse(l->at, "the row has both the fields %s and %s; which one is meant?", form, forms[i]);
        form = forms[i];
    }
    if (form && strcmp(form, "instruction") != 0)
        return take_chat(l, form, row);
    if (form || json_object_get(row, "output"))
        return take_alpaca(l, row, owned);
    if (json_object_get(row, "completion"))
        return take_prompt(l, row);
    if (json_object_get(row, "text"))
        return take_text(l, row);
    return spa_row_refuse(l->at, "the row has none of the fields messages, conversations, instruction and output, prompt and completion, text");
}

int spa_row_parts(const struct spa_row_place *at, const json_t *row, struct spa_part *parts, size_t *n, char **owned)
{
    struct list l = { at, parts, 0 };
    *owned = NULL;
    if (take_row(&l, row, owned) != 0)
        return -1;
    while (l.n > 0 && !l.parts[l.n - 1].loss)   /* what follows the last answer that is learned changes nothing */
        l.n--;
    *n = l.n;
    return l.n > 0 ? 0 : spa_row_refuse(at, "no answer of the row carries loss: each has the weight 0");
}
