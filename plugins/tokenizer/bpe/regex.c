/*
 * Regular expressions: compiling what pattern.c wrote for PCRE2, and its matches one after another; literal strings go by
 * a plain search. Knows no tokenizer.
 */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct apus_bpe_regex {
    pcre2_code *code; /* NULL for a literal */
    int jit;
    char *literal;
    size_t n;
};

apus_status apus_bpe_regex_open(apus_bpe_regex **out, const char *pattern, size_t n, int literal, const char *where, apus_error *err)
{
    if (apus_bpe_valid_prefix(pattern, n) != n)
        return apus_fail(err, APUS_E_INVALID, "%s: the pattern is not UTF-8", where);
    apus_bpe_regex *r = calloc(1, sizeof *r);
    if (r == NULL)
        return apus_bpe_memory(err);
    *out = r;
    if (literal && n > 0) {
        r->literal = malloc(n);
        if (r->literal == NULL)
            return apus_bpe_memory(err);
        memcpy(r->literal, pattern, n);
        r->n = n;
        return APUS_OK;
    }
    char *rewritten;
    size_t n_rewritten, problem_at;
    const char *problem;
    if (!apus_bpe_translate(pattern, n, &rewritten, &n_rewritten, &problem, &problem_at)) {
        if (problem == NULL)
            return apus_bpe_memory(err);
        return apus_fail(err, APUS_E_UNSUPPORTED, "%s: the pattern has %s (near its byte %zu): %.*s", where, problem, problem_at,
                         (int)(n < 300 ? n : 300), pattern);
    }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    int code = 0;
    PCRE2_SIZE at = 0;
    if (context != NULL) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        pcre2_set_bsr(context, PCRE2_BSR_UNICODE);
        r->code =
            pcre2_compile((PCRE2_SPTR)rewritten, n_rewritten, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
        pcre2_compile_context_free(context);
    }
    free(rewritten);
    if (r->code == NULL) {
        char reason[200] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        return apus_fail(err, APUS_E_INVALID, "%s: the pattern cannot be read: %s: %.*s", where, reason, (int)(n < 300 ? n : 300), pattern);
    }
    r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    return APUS_OK;
}

void apus_bpe_regex_close(apus_bpe_regex *r)
{
    if (r == NULL)
        return;
    pcre2_code_free(r->code);
    free(r->literal);
    free(r);
}

/* The call's match data, made at its first use. */
static int prepare(apus_bpe_call *call)
{
    if (call->match == NULL)
        call->match = pcre2_match_data_create(1, NULL);
    if (call->match_context == NULL)
        call->match_context = pcre2_match_context_create(NULL);
    return call->match != NULL && call->match_context != NULL;
}

static int search(apus_bpe_call *call, const apus_bpe_regex *r, const apus_bpe_search *s)
{
    int rc;
    if (r->jit) {
        rc = pcre2_jit_match(r->code, (PCRE2_SPTR)s->s, s->n, s->position, PCRE2_NO_UTF_CHECK, call->match, call->match_context);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT)
            return rc;
        if (call->match_stack == NULL) {
            call->match_stack = pcre2_jit_stack_create(64 * 1024, 64 * 1024 * 1024, NULL);
            if (call->match_stack == NULL)
                return PCRE2_ERROR_NOMEMORY;
            pcre2_jit_stack_assign(call->match_context, NULL, call->match_stack);
            return search(call, r, s);
        }
        return rc;
    }
    return pcre2_match(r->code, (PCRE2_SPTR)s->s, s->n, s->position, PCRE2_NO_UTF_CHECK, call->match, call->match_context);
}

int apus_bpe_regex_next(apus_bpe_call *call, const apus_bpe_regex *r, apus_bpe_search *s, size_t *begin, size_t *end)
{
    if (r->literal != NULL) {
        size_t at = apus_bpe_find(s->s, s->n, s->position, r->literal, r->n);
        if (at == s->n)
            return 0;
        *begin = at;
        *end = s->position = at + r->n;
        return 1;
    }
    if (!prepare(call)) {
        apus_bpe_memory(call->err);
        return -1;
    }
    while (s->position <= s->n) {
        int rc = search(call, r, s);
        if (rc == PCRE2_ERROR_NOMATCH)
            return 0;
        if (rc < 0) {
            char reason[200] = "";
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
            apus_fail(call->err, APUS_E_INVALID, "the tokenizer's pattern gave up on this text at byte %zu: %s", s->position, reason);
            return -1;
        }
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(call->match);
        *begin = at[0];
        *end = at[1];
        if (*end == *begin && s->last == *end + 1) { /* an empty match right after the last one */
            size_t length = 1;
            if (s->position < s->n)
                apus_bpe_char(s->s + s->position, &length);
            s->position += length;
            continue;
        }
        s->position = *end;
        s->last = *end + 1;
        return 1;
    }
    return 0;
}
