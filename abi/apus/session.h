/*
 * apus/session.h: the kinds "stage", "sampler" and "tracker", and the extension "apus.session/1" that stages are written with:
 * train steps, evaluation, generation, export, the stage's folder and events.
 */
#ifndef APUS_SESSION_H
#define APUS_SESSION_H

#include <apus/base.h>
#include <apus/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct apus_stage_context apus_stage_context; /* one running stage */
typedef struct apus_trainer apus_trainer;             /* a model being trained: weights, plan, optimiser, data position */
typedef struct apus_generator apus_generator;         /* a model that answers */

/* ------------------------------------------------------------ "apus.session/1" */

/* An answer. Pointers: owner: the generator, valid during the call of `done` alone. */
typedef struct apus_answer {
    uint32_t size;
    apus_status status;          /* APUS_OK, or why this request alone went wrong; then the rest is what there was until then */
    const apus_error *error;     /* NULL with APUS_OK */
    const char *text;            /* without the stop string that ended it */
    size_t length;
    const int32_t *prompt_ids;   /* [n_prompt] */
    size_t n_prompt;
    const int32_t *ids;          /* [n_ids], with the stop token that ended it */
    size_t n_ids;
    const double *logprobs;      /* [n_ids] natural logs, of the model's own distribution (before temperature and the like); NULL unless asked for */
    const char *finish_reason;   /* "stop", "length" or "error" */
    size_t n_cached;             /* prompt tokens whose keys and values an earlier request had computed */
} apus_answer;

/* One answer asked for: exactly one of messages, prompt, ids. What it points to need not outlive the call. The answer is a function of
 * (model, prompt, sampling, seed, index) alone: not of what else is asked, when, or how much at once. */
typedef struct apus_generate_request {
    uint32_t size;
    const apus_node *messages;   /* through the template */
    const apus_node *tools;      /* may be NULL */
    const char *prompt;          /* continued as raw text */
    const int32_t *ids;
    size_t n_ids;
    const apus_node *sampling;   /* {sampler: component, max_tokens: 512, stop: [strings]}, as the parameters of the stage `generate`; others are ignored */
    uint64_t seed;
    uint32_t index;              /* which answer of the run, or which of several to one prompt: random numbers are keyed by (seed, index, position) */
    int32_t logprobs;            /* 1: the answer has log-probabilities */
    /* Called with each piece of text as it is ready (whole characters, never part of a stop string); may be NULL. Return 1 to stop. */
    int (*piece)(void *context, const char *text, size_t length);
    /* Called once, when the answer is finished or has failed; not for one that is cancelled. */
    void (*done)(void *context, const apus_answer *answer);
    void *context;
} apus_generate_request;

typedef struct apus_session_api {
    uint32_t size;

    /* The stage. */
    const char *(*stage_name)(apus_stage_context *s);
    const char *(*stage_dir)(apus_stage_context *s);               /* RUN/STAGE; exists */
    uint64_t (*seed)(apus_stage_context *s);
    /* Append to events.jsonl and tell the trackers. Takes the event. */
    apus_status (*event)(apus_stage_context *s, apus_node *event, apus_error *err);
    /* The stage's result for later stages, the summary and the lock: a map. Takes it. */
    void (*result)(apus_stage_context *s, apus_node *result);

    /* Training. params: the stage's validated parameters (names as in the stage `train`). Resumes by itself from the newest
     * checkpoint in the stage's folder. */
    apus_status (*trainer_open)(apus_stage_context *s, const apus_node *params, apus_trainer **trainer, apus_error *err);
    void (*trainer_close)(apus_trainer *t);
    int64_t (*trainer_step)(const apus_trainer *t);                /* optimizer steps done */
    int64_t (*trainer_max_steps)(const apus_trainer *t);
    /* One optimizer step; its event (step, loss, grad_norm, …) is emitted. APUS_E_NUMERIC: not finite; nothing was changed. */
    apus_status (*train_step)(apus_trainer *t, apus_error *err);
    /* Loss and metrics over eval_dataset (or eval_split); emitted with eval_ names. */
    apus_status (*trainer_evaluate)(apus_trainer *t, apus_error *err);
    apus_status (*trainer_checkpoint)(apus_trainer *t, apus_error *err);
    apus_status (*trainer_finish)(apus_trainer *t, apus_error *err); /* writes STAGE/model, atomically */

    /* Loss and metrics of a model over a dataset (params as in the stage `eval`). owner of *metrics: caller. */
    apus_status (*evaluate)(apus_stage_context *s, const apus_node *params, apus_node **metrics, apus_error *err);

    /* Generation: many requests at once over one cache of keys and values, joining and leaving at any step; the pages of equal
     * prompts are computed once. All functions of a generator: on one thread at a time. Callbacks run inside generator_step, on its
     * thread; they may submit and cancel, not step or close.
     * params: model, template, parse_special, parallel (answers that go on at once, default 1), cache_tokens (positions the cache may
     * hold; 0: it grows to what the requests at work may need). Requests beyond either wait; when the cache is full and nothing else
     * can go on, the youngest gives up its pages and is computed again later, with the same result. */
    apus_status (*generator_open)(apus_stage_context *s, const apus_node *params, apus_generator **generator, apus_error *err);
    void (*generator_close)(apus_generator *g);      /* what is in flight is dropped, without a call of `done` */
    /* Errors (a prompt that is too long, a sampler's parameter, a request that cache_tokens can never hold) are this request's alone.
     * ticket: names it to generator_cancel; may be NULL. */
    apus_status (*generator_submit)(apus_generator *g, const apus_generate_request *request, uint64_t *ticket, apus_error *err);
    void (*generator_cancel)(apus_generator *g, uint64_t ticket); /* one that is not there is fine */
    /* One run of the model: every answer at work gets a token, or prompts get further. pending: requests not yet answered; 0: there was
     * nothing to do. APUS_E_STOPPED: nothing was done. Other errors are the device's: then the generator can only be closed. */
    apus_status (*generator_step)(apus_generator *g, size_t *pending, apus_error *err);
    /* One request, stepped to its end (others in flight go on meanwhile); its `done` is not called.
     * -> {text, prompt_ids, ids, logprobs (if asked for), finish_reason}. owner: caller. */
    apus_status (*generate)(apus_generator *g, const apus_generate_request *request, apus_node **answer, apus_error *err);

    /* Rows of a dataset parameter as examples, and the dataset's judgement of an answer. */
    apus_status (*rows_open)(apus_stage_context *s, const apus_node *dataset, void **rows, int64_t *count, apus_error *err);
    apus_status (*rows_example)(void *rows, int64_t i, apus_node **row, apus_node **example, apus_error *err);
    apus_status (*rows_judge)(void *rows, const apus_node *row, const char *answer, apus_node **verdict, apus_error *err);
    void (*rows_close)(void *rows);

    /* Write a model (params as in the stage `export`). */
    apus_status (*export_model)(apus_stage_context *s, const apus_node *params, apus_error *err);

    /* For a stage's `plan`: what a training, or `evaluate`, would take with these params. Into costs: seconds, memory, steps, … */
    apus_status (*trainer_plan)(apus_stage_context *s, const apus_node *params, apus_node *costs, apus_error *err);
    apus_status (*evaluate_plan)(apus_stage_context *s, const apus_node *params, apus_node *costs, apus_error *err);
    /* The same of a generator that is open: packed, plan. */
    void (*generator_plan)(apus_generator *g, apus_node *costs);
} apus_session_api;

/* ------------------------------------------------------------ the kind "stage" */

/* Parameters of type MODEL and DATASET are resolved by the host before run: a stage's name becomes what it made. */
typedef struct apus_stage_ops {
    uint32_t size;
    apus_status (*run)(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err);
    /* What `run` would take, into the map costs: seconds (an estimate, of all that is left to do), at_most (true: not longer than that),
     * and whatever else there is to tell. Writes nothing and emits no event. A model that an earlier stage is yet to make is stood in for
     * by one of the same shape. NULL: not known before it runs. */
    apus_status (*plan)(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_node *costs, apus_error *err);
} apus_stage_ops;

/* ------------------------------------------------------------ the kind "sampler" */

typedef struct apus_sampler_ops {
    uint32_t size;
    apus_status (*open)(const apus_host *host, const apus_node *params, void **sampler, apus_error *err);
    void (*close)(void *sampler);
    /* [any], one call at a time for each sampler. logits [vocab] may be changed. history: prompt and answer so far; the first n_prompt are the prompt. u: uniform in [0,1). */
    apus_status (*sample)(void *sampler, float *logits, int32_t vocab, const int32_t *history, size_t n, size_t n_prompt, double u,
                          int32_t *id, apus_error *err);
} apus_sampler_ops;

/* ------------------------------------------------------------ the kind "tracker" */

typedef struct apus_tracker_run {
    uint32_t size;
    const char *run_dir, *stage_dir, *stage, *stage_type;
    int32_t stage_index, n_stages;
    int32_t interactive;         /* standard error is a terminal */
    const apus_node *config;     /* the resolved pipeline */
} apus_tracker_run;

typedef struct apus_tracker_ops {
    uint32_t size;
    /* One instance per stage. Events that a resumed stage already has are told first, with replayed = 1. */
    apus_status (*open)(const apus_host *host, const apus_node *params, const apus_tracker_run *run, void **tracker, apus_error *err);
    apus_status (*event)(void *tracker, const apus_node *event, int replayed, apus_error *err);
    void (*close)(void *tracker, apus_status status);
} apus_tracker_ops;

#ifdef __cplusplus
}
#endif
#endif
