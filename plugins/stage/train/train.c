/*
 * Stage train: trains a model with a loss over a dataset: pre-training, fine-tuning, preference optimisation. The loop is here; what
 * a step is, the session knows.
 */
#include <apus/plugin.h>
#include <apus/session.h>

static const apus_session_api *session;

/* Every `steps`-th step; 0: never. */
static int due(int64_t step, int64_t steps)
{
    return steps > 0 && step % steps == 0;
}

static apus_status loop(const apus_host *host, const apus_node *params, apus_trainer *t, apus_error *err)
{
    const int64_t save_steps = host->node->as_int(host->node->get(params, "save_steps"), 0);
    const int64_t eval_steps = host->node->as_int(host->node->get(params, "eval_steps"), 0);
    const int64_t max_steps = session->trainer_max_steps(t);
    apus_status st = APUS_OK;
    while (st == APUS_OK && session->trainer_step(t) < max_steps) {
        st = session->train_step(t, err);
        const int64_t step = session->trainer_step(t);
        if (st == APUS_OK && (due(step, eval_steps) || step == max_steps))
            st = session->trainer_evaluate(t, err);
        if (st == APUS_OK && due(step, save_steps) && step < max_steps)
            st = session->trainer_checkpoint(t, err);
        if (st == APUS_E_STOPPED || (st == APUS_OK && host->stopping() && step < max_steps)) { /* also in the midst of an evaluation */
            st = session->trainer_checkpoint(t, err);
            if (st == APUS_OK)
                st = apus_fail(err, APUS_E_STOPPED, "stopped at step %lld of %lld, checkpoint written; run the same command to go on",
                               (long long)step, (long long)max_steps);
        }
    }
    return st;
}

static apus_status run(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_error *err)
{
    apus_trainer *t = NULL;
    apus_status st = session->trainer_open(s, params, &t, err);
    if (st != APUS_OK)
        return st;
    st = loop(host, params, t, err);
    if (st == APUS_OK)
        st = session->trainer_finish(t, err);
    session->trainer_close(t);
    return st;
}

static apus_status plan(const apus_host *host, const apus_node *params, apus_stage_context *s, apus_node *costs, apus_error *err)
{
    (void)host;
    return session->trainer_plan(s, params, costs, err);
}

static const apus_stage_ops ops = {.size = sizeof ops, .run = run, .plan = plan};

static const char *const recompute_choices[] = {"none", "cheap", "block", NULL};

#define PARAM .size = sizeof(apus_param)
#define ANY   .min = 1, .max = 0
static const apus_param params[] = {
    {PARAM, .name = "model", .type = APUS_PARAM_MODEL, .flags = APUS_PARAM_REQUIRED, ANY,
     .doc = "What is trained: a Hugging Face folder, a GGUF file, an earlier stage (its whole model, adapter merged), or {arch: decoder, config: "
            "{…}} from scratch.",
     .aliases = "base_model model_name_or_path model_id_or_path"},
    {PARAM, .name = "dataset", .type = APUS_PARAM_DATASET, .flags = APUS_PARAM_REQUIRED, ANY, .doc = "Rows to train on: one dataset or a list.",
     .aliases = "datasets train_dataset"},
    {PARAM, .name = "eval_dataset", .type = APUS_PARAM_DATASET, .flags = APUS_PARAM_NULLABLE, ANY, .doc = "Rows held out for validation.",
     .aliases = "val_dataset"},
    {PARAM, .name = "eval_split", .type = APUS_PARAM_FLOAT, .fallback = "0.0", .min = 0.0, .max = 1e9,
     .doc = "Part of the dataset held out when there is no eval_dataset: a share below 1, or a number of rows.",
     .aliases = "val_size split_dataset_ratio val_set_size test_size", .needs = "!eval_dataset"},
    {PARAM, .name = "eval_steps", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e15, .unit = "steps",
     .doc = "Validate every so many steps; 0: at the end only.", .aliases = "evaluation_steps evals_per_epoch", .needs = "eval_dataset eval_split"},
    {PARAM, .name = "tuner", .type = APUS_PARAM_COMPONENT, .of_kind = "tuner", .fallback = "lora", ANY, .doc = "What is trained: full, lora, …",
     .aliases = "tuner_type finetuning_type adapter train_type peft_config"},
    {PARAM, .name = "loss", .type = APUS_PARAM_COMPONENT, .of_kind = "loss", .fallback = "cross_entropy", ANY, .doc = "What is minimised.",
     .aliases = "rlhf_type rl"},
    {PARAM, .name = "optimizer", .type = APUS_PARAM_COMPONENT, .of_kind = "optimizer", .fallback = "adamw", ANY, .doc = "How the weights move.",
     .aliases = "optim learning_rate lr"},
    {PARAM, .name = "offload_optimizer", .type = APUS_PARAM_BOOL, .fallback = "false", ANY,
     .doc =
         "Keep the optimizer's states in a file in the stage's folder, mapped, not in memory: the same numbers, and backend.memory does not count "
         "them. "
         "Written out and read back as memory gets short; AdamW's take 8 bytes of disk for each trained weight. The file is gone with the process.",
     .aliases = "optimizer_offload offload_optimizer_device cpu_offload"},
    {PARAM, .name = "schedule", .type = APUS_PARAM_NODE, .fallback = "cosine", ANY,
     .doc = "Learning rate by step: constant, linear or cosine, or {type, warmup_steps, warmup_ratio}.",
     .aliases = "lr_scheduler_type lr_scheduler warmup_ratio warmup_steps"},
    {PARAM, .name = "batch_size", .type = APUS_PARAM_INT, .fallback = "16", .min = 1, .max = 1e6, .unit = "rows",
     .doc = "Rows (pairs) of one optimizer step: the global batch, however it is cut to fit memory.",
     .aliases = "per_device_train_batch_size micro_batch_size gradient_accumulation_steps train_batch_size"},
    {PARAM, .name = "max_steps", .type = APUS_PARAM_INT, .fallback = "0", .min = 0, .max = 1e15, .unit = "steps",
     .doc = "Optimizer steps; wins over epochs. 0: as epochs say.", .aliases = "num_steps total_steps"},
    {PARAM, .name = "epochs", .type = APUS_PARAM_FLOAT, .flags = APUS_PARAM_NULLABLE, .min = 1e-6, .max = 1e6,
     .doc = "Passes over the dataset; default 1.", .aliases = "num_train_epochs num_epochs n_epochs"},
    {PARAM, .name = "max_grad_norm", .type = APUS_PARAM_FLOAT, .fallback = "1.0", .min = 0.0, .max = 1e9,
     .doc = "Gradients are scaled down to this L2 norm; 0: no clipping.", .aliases = "gradient_clipping clip_grad"},
    {PARAM, .name = "save_steps", .type = APUS_PARAM_INT, .fallback = "50", .min = 0, .max = 1e15, .unit = "steps",
     .doc = "Checkpoint every so many steps; 0: only when stopped.", .aliases = "save_strategy saves_per_epoch"},
    {PARAM, .name = "save_total_limit", .type = APUS_PARAM_INT, .fallback = "2", .min = 0, .max = 1e6,
     .doc = "Newest checkpoints to keep (and the best); 0: all."},
    {PARAM, .name = "recompute", .type = APUS_PARAM_STRING, .fallback = "cheap", .choices = recompute_choices, ANY,
     .doc = "What the backward pass computes again instead of keeping: none; cheap operations; whole blocks (least memory). With backend.memory, the "
            "least: more where that is needed to fit.",
     .aliases = "gradient_checkpointing"},
    {PARAM, .name = "format", .type = APUS_PARAM_STRING, .fallback = "safetensors", ANY, .doc = "Format of STAGE/model for a whole model."},
    {PARAM, .name = "adapter_format", .type = APUS_PARAM_STRING, .fallback = "peft", ANY, .doc = "Format of STAGE/model for an adapter."},
};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "stage",
                                             .name = "train",
                                             .doc = "Trains a model: pre-training, fine-tuning, preference optimisation.",
                                             .params = params,
                                             .n_params = sizeof params / sizeof params[0],
                                             .ops = &ops}};

static const apus_plugin plugin = {
    APUS_PLUGIN_HEAD,         .name = "train",  .version = "1.0.0", .license = "Apache-2.0", .doc = "The training stage.",
    .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    session = host->extension("apus.session/1");
    return &plugin;
}
