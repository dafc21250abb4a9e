/*
 * The layout of the contract, pinned: offsets, sizes and constants on LP64. Made by tools/abi/layout.py. A line may change
 * only in the size of a struct that opens with `size` and has grown at its end; anything else breaks plugins that exist.
 */
#include <apus/base.h>
#include <apus/plugin.h>
#include <apus/types.h>
#include <apus/graph.h>
#include <apus/kernel.h>
#include <apus/model.h>
#include <apus/data.h>
#include <apus/train.h>
#include <apus/session.h>
#include <apus/tokenizer.h>

#include <stdio.h>

#define AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field)
#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#define IS(constant, value) _Static_assert((constant) == (value), #constant)

/* clang-format off */
_Static_assert(sizeof(void *) == 8 && sizeof(long) == 8, "these numbers are LP64's");

/* base.h */
IS(APUS_OK, 0);
IS(APUS_E_INVALID, 1);
IS(APUS_E_IO, 2);
IS(APUS_E_MEMORY, 3);
IS(APUS_E_UNSUPPORTED, 4);
IS(APUS_E_NOT_FOUND, 5);
IS(APUS_E_INTERNAL, 6);
IS(APUS_E_STOPPED, 7);
IS(APUS_E_NUMERIC, 8);
IS(APUS_NODE_NULL, 0);
IS(APUS_NODE_BOOL, 1);
IS(APUS_NODE_INT, 2);
IS(APUS_NODE_FLOAT, 3);
IS(APUS_NODE_STRING, 4);
IS(APUS_NODE_LIST, 5);
IS(APUS_NODE_MAP, 6);
IS(APUS_JSON_INDENT, 1);
IS(APUS_JSON_ASCII, 2);
IS(APUS_LOG_DEBUG, 0);
IS(APUS_LOG_INFO, 1);
IS(APUS_LOG_WARN, 2);
IS(APUS_LOG_ERROR, 3);
IS(APUS_PARAM_BOOL, 1);
IS(APUS_PARAM_INT, 2);
IS(APUS_PARAM_FLOAT, 3);
IS(APUS_PARAM_STRING, 4);
IS(APUS_PARAM_PATH, 5);
IS(APUS_PARAM_BYTES, 6);
IS(APUS_PARAM_LIST, 7);
IS(APUS_PARAM_COMPONENT, 8);
IS(APUS_PARAM_NODE, 9);
IS(APUS_PARAM_MAP, 10);
IS(APUS_PARAM_MODEL, 11);
IS(APUS_PARAM_DATASET, 12);
IS(APUS_PARAM_REQUIRED, 1);
IS(APUS_PARAM_NULLABLE, 2);
IS(APUS_PARAM_WRITTEN, 4);
IS(APUS_ABI_MAJOR, 1);

/* plugin.h */
IS(APUS_LAYOUT_TAG, 1095783729);

/* types.h */
IS(APUS_REAL, 0);
IS(APUS_F32, 1);
IS(APUS_F64, 2);
IS(APUS_F16, 3);
IS(APUS_BF16, 4);
IS(APUS_I32, 5);
IS(APUS_I64, 6);
IS(APUS_U8, 7);
IS(APUS_Q4_0, 32);
IS(APUS_Q4_1, 33);
IS(APUS_Q5_0, 34);
IS(APUS_Q5_1, 35);
IS(APUS_Q8_0, 36);
IS(APUS_IQ4_NL, 37);
IS(APUS_Q2_K, 48);
IS(APUS_Q3_K, 49);
IS(APUS_Q4_K, 50);
IS(APUS_Q5_K, 51);
IS(APUS_Q6_K, 52);
IS(APUS_PACKED, 256);
IS(APUS_DIM_TOKENS, -1);
IS(APUS_DIM_SEGMENTS, -2);
IS(APUS_DIM_SCORED, -3);
IS(APUS_DIM_ROWS, -4);
IS(APUS_DIM_PAIRS, -5);
IS(APUS_N_DIM_SYMBOLS, 5);
IS(APUS_WEIGHT_MATRIX, 1);
IS(APUS_WEIGHT_EMBEDDING, 2);
IS(APUS_WEIGHT_NORM, 3);
IS(APUS_WEIGHT_BIAS, 4);
IS(APUS_WEIGHT_HEAD, 1);
IS(APUS_WEIGHT_TRANSPOSED, 2);
IS(APUS_WEIGHT_OPTIONAL, 4);
IS(APUS_MAX_DIMS, 4);

/* graph.h */
IS(APUS_OP_ELEMENTWISE, 1);
IS(APUS_OP_CHEAP, 2);
IS(APUS_OP_IN_PLACE, 4);
IS(APUS_NONE_ID, -1);
IS(APUS_MAX_ATTRS, 16);
IS(APUS_MAX_INPUTS, 12);
IS(APUS_MAX_OUTPUTS, 6);

/* kernel.h */
IS(APUS_KERNEL_ACCUMULATES, 1);
IS(APUS_KERNEL_ROWS_VARY, 2);
IS(APUS_KERNEL_TWICE, 4);
IS(APUS_SIBLINGS_MAX, 4);

/* train.h */
IS(APUS_LOSS_SEQUENCES, 0);
IS(APUS_LOSS_PAIRS, 1);
IS(APUS_LOSS_NEEDS_REFERENCE, 2);
IS(APUS_LOSS_NO_DROPOUT, 4);
IS(APUS_OPTIMIZER_ELEMENTWISE, 1);
IS(APUS_MAX_STATES, 4);

/* tokenizer.h */
IS(APUS_ENCODE_SPECIAL_TEXT, 1);
IS(APUS_ENCODE_ADD_SPECIAL, 2);

AT(apus_error, message, 0);
AT(apus_error, hint, 1536);
SIZE(apus_error, 2048);

AT(apus_node_api, size, 0);
AT(apus_node_api, kind, 8);
AT(apus_node_api, as_bool, 16);
AT(apus_node_api, as_int, 24);
AT(apus_node_api, as_float, 32);
AT(apus_node_api, as_string, 40);
AT(apus_node_api, length, 48);
AT(apus_node_api, at, 56);
AT(apus_node_api, key_at, 64);
AT(apus_node_api, get, 72);
AT(apus_node_api, where, 80);
AT(apus_node_api, make_null, 88);
AT(apus_node_api, make_bool, 96);
AT(apus_node_api, make_int, 104);
AT(apus_node_api, make_float, 112);
AT(apus_node_api, make_string, 120);
AT(apus_node_api, make_list, 128);
AT(apus_node_api, make_map, 136);
AT(apus_node_api, copy, 144);
AT(apus_node_api, append, 152);
AT(apus_node_api, set, 160);
AT(apus_node_api, remove, 168);
AT(apus_node_api, release, 176);
AT(apus_node_api, parse_json, 184);
AT(apus_node_api, write_json, 192);
AT(apus_node_api, equal, 200);
SIZE(apus_node_api, 208);

AT(apus_host, size, 0);
AT(apus_host, minor, 4);
AT(apus_host, node, 8);
AT(apus_host, extension, 16);
AT(apus_host, alloc, 24);
AT(apus_host, realloc, 32);
AT(apus_host, free, 40);
AT(apus_host, log, 48);
AT(apus_host, stopping, 56);
SIZE(apus_host, 64);

AT(apus_param, size, 0);
AT(apus_param, name, 8);
AT(apus_param, type, 16);
AT(apus_param, item, 20);
AT(apus_param, flags, 24);
AT(apus_param, fallback, 32);
AT(apus_param, min, 40);
AT(apus_param, max, 48);
AT(apus_param, choices, 56);
AT(apus_param, of_kind, 64);
AT(apus_param, unit, 72);
AT(apus_param, doc, 80);
AT(apus_param, aliases, 88);
AT(apus_param, needs, 96);
SIZE(apus_param, 104);

AT(apus_component, size, 0);
AT(apus_component, kind, 8);
AT(apus_component, name, 16);
AT(apus_component, doc, 24);
AT(apus_component, params, 32);
AT(apus_component, n_params, 40);
AT(apus_component, ops, 48);
SIZE(apus_component, 56);

AT(apus_plugin, size, 0);
AT(apus_plugin, layout, 4);
AT(apus_plugin, minor, 8);
AT(apus_plugin, need_minor, 12);
AT(apus_plugin, name, 16);
AT(apus_plugin, version, 24);
AT(apus_plugin, license, 32);
AT(apus_plugin, doc, 40);
AT(apus_plugin, components, 48);
AT(apus_plugin, n_components, 56);
SIZE(apus_plugin, 64);

AT(apus_view, data, 0);
AT(apus_view, dtype, 8);
AT(apus_view, ndim, 12);
AT(apus_view, dims, 16);
SIZE(apus_view, 48);

AT(apus_weight_spec, size, 0);
AT(apus_weight_spec, name, 8);
AT(apus_weight_spec, role, 16);
AT(apus_weight_spec, layer, 24);
AT(apus_weight_spec, what, 28);
AT(apus_weight_spec, flags, 32);
AT(apus_weight_spec, ndim, 36);
AT(apus_weight_spec, dims, 40);
AT(apus_weight_spec, init_std, 56);
AT(apus_weight_spec, init_fill, 64);
AT(apus_weight_spec, init_bound, 72);
SIZE(apus_weight_spec, 80);

AT(apus_tensor, id, 0);
SIZE(apus_tensor, 4);

AT(apus_attention_spec, size, 0);
AT(apus_attention_spec, heads, 4);
AT(apus_attention_spec, kv_heads, 8);
AT(apus_attention_spec, head_dim, 12);
AT(apus_attention_spec, scale, 16);
AT(apus_attention_spec, window, 24);
AT(apus_attention_spec, softcap, 32);
AT(apus_attention_spec, layer, 40);
SIZE(apus_attention_spec, 48);

AT(apus_graph_api, size, 0);
AT(apus_graph_api, reserved, 8);
AT(apus_graph_api, emit, 16);
AT(apus_graph_api, output, 24);
AT(apus_graph_api, constant, 32);
AT(apus_graph_api, input, 40);
AT(apus_graph_api, weight, 48);
AT(apus_graph_api, linear, 56);
AT(apus_graph_api, embedding, 64);
AT(apus_graph_api, attention, 72);
AT(apus_graph_api, point, 80);
AT(apus_graph_api, shape, 88);
AT(apus_graph_api, fail, 96);
SIZE(apus_graph_api, 104);

AT(apus_shape, dtype, 0);
AT(apus_shape, ndim, 4);
AT(apus_shape, dims, 8);
SIZE(apus_shape, 40);

AT(apus_op, size, 0);
AT(apus_op, name, 8);
AT(apus_op, doc, 16);
AT(apus_op, min_inputs, 24);
AT(apus_op, max_inputs, 28);
AT(apus_op, n_outputs, 32);
AT(apus_op, attrs, 40);
AT(apus_op, flags, 48);
AT(apus_op, shapes, 56);
AT(apus_op, gradient, 64);
AT(apus_op, decompose, 72);
AT(apus_op, shape_only, 80);
SIZE(apus_op, 88);

AT(apus_ops_ops, size, 0);
AT(apus_ops_ops, ops, 8);
AT(apus_ops_ops, n_ops, 16);
SIZE(apus_ops_ops, 24);

AT(apus_backend_facts, size, 0);
AT(apus_backend_facts, threads, 4);
AT(apus_backend_facts, products, 8);
AT(apus_backend_facts, hardware, 16);
SIZE(apus_backend_facts, 24);

AT(apus_backend_ops, size, 0);
AT(apus_backend_ops, open, 8);
AT(apus_backend_ops, close, 16);
AT(apus_backend_ops, real, 24);
AT(apus_backend_ops, alloc, 32);
AT(apus_backend_ops, free, 40);
AT(apus_backend_ops, host_memory, 48);
AT(apus_backend_ops, upload, 56);
AT(apus_backend_ops, download, 64);
AT(apus_backend_ops, parallel, 72);
AT(apus_backend_ops, finish, 80);
AT(apus_backend_ops, describe, 88);
AT(apus_backend_ops, kept, 96);
AT(apus_backend_ops, facts, 104);
SIZE(apus_backend_ops, 112);

AT(apus_kernel_call, in, 0);
AT(apus_kernel_call, out, 8);
AT(apus_kernel_call, attrs, 16);
AT(apus_kernel_call, scratch, 24);
AT(apus_kernel_call, backend, 32);
AT(apus_kernel_call, n_in, 40);
AT(apus_kernel_call, n_out, 44);
AT(apus_kernel_call, accumulate, 48);
AT(apus_kernel_call, prologue, 52);
AT(apus_kernel_call, prologue_inputs, 53);
AT(apus_kernel_call, prologue_kept, 54);
AT(apus_kernel_call, reserved, 55);
SIZE(apus_kernel_call, 56);

AT(apus_kernel, size, 0);
AT(apus_kernel, op, 8);
AT(apus_kernel, then, 16);
AT(apus_kernel, flags, 24);
AT(apus_kernel, encodings, 32);
AT(apus_kernel, scratch, 40);
AT(apus_kernel, run, 48);
AT(apus_kernel, flops, 56);
AT(apus_kernel, run_siblings, 64);
AT(apus_kernel, pack, 72);
AT(apus_kernel, narrow_in, 80);
AT(apus_kernel, narrow_out, 84);
AT(apus_kernel, with, 88);
AT(apus_kernel, suits, 96);
AT(apus_kernel, prologues, 104);
SIZE(apus_kernel, 112);

AT(apus_kernels_ops, size, 0);
AT(apus_kernels_ops, backend, 8);
AT(apus_kernels_ops, real, 16);
AT(apus_kernels_ops, probe, 24);
AT(apus_kernels_ops, kernels, 32);
AT(apus_kernels_ops, n_kernels, 40);
AT(apus_kernels_ops, open, 48);
AT(apus_kernels_ops, close, 56);
AT(apus_kernels_ops, describe, 64);
SIZE(apus_kernels_ops, 72);

AT(apus_model_inputs, size, 0);
AT(apus_model_inputs, tokens, 4);
AT(apus_model_inputs, positions, 8);
AT(apus_model_inputs, lengths, 12);
SIZE(apus_model_inputs, 16);

AT(apus_model_outputs, size, 0);
AT(apus_model_outputs, hidden, 4);
AT(apus_model_outputs, head, 8);
AT(apus_model_outputs, logit_scale, 88);
AT(apus_model_outputs, logit_softcap, 96);
SIZE(apus_model_outputs, 104);

AT(apus_model_facts, size, 0);
AT(apus_model_facts, vocab, 4);
AT(apus_model_facts, hidden, 8);
AT(apus_model_facts, layers, 12);
AT(apus_model_facts, heads, 16);
AT(apus_model_facts, kv_heads, 20);
AT(apus_model_facts, head_dim, 24);
AT(apus_model_facts, max_positions, 28);
AT(apus_model_facts, tied, 32);
AT(apus_model_facts, length_dependent, 36);
SIZE(apus_model_facts, 40);

AT(apus_arch_ops, size, 0);
AT(apus_arch_ops, claims, 8);
AT(apus_arch_ops, open, 16);
AT(apus_arch_ops, close, 24);
AT(apus_arch_ops, facts, 32);
AT(apus_arch_ops, build, 40);
SIZE(apus_arch_ops, 48);

AT(apus_tensor_info, size, 0);
AT(apus_tensor_info, name, 8);
AT(apus_tensor_info, dtype, 16);
AT(apus_tensor_info, ndim, 20);
AT(apus_tensor_info, dims, 24);
AT(apus_tensor_info, data, 56);
AT(apus_tensor_info, bytes, 64);
AT(apus_tensor_info, transposed, 72);
SIZE(apus_tensor_info, 80);

AT(apus_model_card, size, 0);
AT(apus_model_card, config, 8);
AT(apus_model_card, generation_config, 16);
AT(apus_model_card, tokenizer, 24);
AT(apus_model_card, tokenizer_config, 32);
AT(apus_model_card, chat_template, 40);
AT(apus_model_card, chat_templates, 48);
AT(apus_model_card, metadata, 56);
SIZE(apus_model_card, 64);

AT(apus_model_export, size, 0);
AT(apus_model_export, card, 8);
AT(apus_model_export, weights, 16);
AT(apus_model_export, n_weights, 24);
AT(apus_model_export, read, 32);
AT(apus_model_export, context, 40);
AT(apus_model_export, dtype, 48);
AT(apus_model_export, shard_bytes, 56);
SIZE(apus_model_export, 64);

AT(apus_format_ops, size, 0);
AT(apus_format_ops, claims, 8);
AT(apus_format_ops, open, 16);
AT(apus_format_ops, close, 24);
AT(apus_format_ops, card, 32);
AT(apus_format_ops, count, 40);
AT(apus_format_ops, tensor, 48);
AT(apus_format_ops, find, 56);
AT(apus_format_ops, unused, 64);
AT(apus_format_ops, write, 72);
AT(apus_format_ops, forget, 80);
SIZE(apus_format_ops, 88);

AT(apus_dataset_ops, size, 0);
AT(apus_dataset_ops, claims, 8);
AT(apus_dataset_ops, open, 16);
AT(apus_dataset_ops, close, 24);
AT(apus_dataset_ops, example, 32);
AT(apus_dataset_ops, count, 40);
AT(apus_dataset_ops, row, 48);
AT(apus_dataset_ops, judge, 56);
AT(apus_dataset_ops, tokenizer, 64);
SIZE(apus_dataset_ops, 72);

AT(apus_signals, size, 0);
AT(apus_signals, context, 8);
AT(apus_signals, token_logps, 16);
AT(apus_signals, token_rows, 20);
AT(apus_signals, row_logps, 24);
AT(apus_signals, row_tokens, 28);
AT(apus_signals, chosen_logps, 32);
AT(apus_signals, rejected_logps, 36);
AT(apus_signals, chosen_tokens, 40);
AT(apus_signals, rejected_tokens, 44);
AT(apus_signals, reference_chosen_logps, 48);
AT(apus_signals, reference_rejected_logps, 52);
AT(apus_signals, ones, 56);
AT(apus_signals, pair_ones, 60);
AT(apus_signals, term, 64);
AT(apus_signals, metric, 72);
SIZE(apus_signals, 80);

AT(apus_loss_ops, size, 0);
AT(apus_loss_ops, open, 8);
AT(apus_loss_ops, close, 16);
AT(apus_loss_ops, needs, 24);
AT(apus_loss_ops, build, 32);
SIZE(apus_loss_ops, 40);

AT(apus_tuner_ops, size, 0);
AT(apus_tuner_ops, open, 8);
AT(apus_tuner_ops, close, 16);
AT(apus_tuner_ops, bind, 24);
AT(apus_tuner_ops, trains, 32);
AT(apus_tuner_ops, parameters, 40);
AT(apus_tuner_ops, parameter, 48);
AT(apus_tuner_ops, linear, 56);
AT(apus_tuner_ops, embedding, 64);
AT(apus_tuner_ops, merge, 72);
AT(apus_tuner_ops, config, 80);
AT(apus_tuner_ops, from_config, 88);
SIZE(apus_tuner_ops, 96);

AT(apus_optimizer_step, size, 0);
AT(apus_optimizer_step, param, 4);
AT(apus_optimizer_step, grad, 8);
AT(apus_optimizer_step, state, 12);
AT(apus_optimizer_step, learning_rate, 28);
AT(apus_optimizer_step, step, 32);
AT(apus_optimizer_step, decay, 36);
AT(apus_optimizer_step, new_param, 40);
AT(apus_optimizer_step, new_state, 44);
SIZE(apus_optimizer_step, 60);

AT(apus_optimizer_ops, size, 0);
AT(apus_optimizer_ops, open, 8);
AT(apus_optimizer_ops, close, 16);
AT(apus_optimizer_ops, flags, 24);
AT(apus_optimizer_ops, states, 32);
AT(apus_optimizer_ops, state_name, 40);
AT(apus_optimizer_ops, learning_rate, 48);
AT(apus_optimizer_ops, build, 56);
SIZE(apus_optimizer_ops, 64);

AT(apus_answer, size, 0);
AT(apus_answer, status, 4);
AT(apus_answer, error, 8);
AT(apus_answer, text, 16);
AT(apus_answer, length, 24);
AT(apus_answer, prompt_ids, 32);
AT(apus_answer, n_prompt, 40);
AT(apus_answer, ids, 48);
AT(apus_answer, n_ids, 56);
AT(apus_answer, logprobs, 64);
AT(apus_answer, finish_reason, 72);
AT(apus_answer, n_cached, 80);
SIZE(apus_answer, 88);

AT(apus_generate_request, size, 0);
AT(apus_generate_request, messages, 8);
AT(apus_generate_request, tools, 16);
AT(apus_generate_request, prompt, 24);
AT(apus_generate_request, ids, 32);
AT(apus_generate_request, n_ids, 40);
AT(apus_generate_request, sampling, 48);
AT(apus_generate_request, seed, 56);
AT(apus_generate_request, index, 64);
AT(apus_generate_request, logprobs, 68);
AT(apus_generate_request, piece, 72);
AT(apus_generate_request, done, 80);
AT(apus_generate_request, context, 88);
SIZE(apus_generate_request, 96);

AT(apus_session_api, size, 0);
AT(apus_session_api, stage_name, 8);
AT(apus_session_api, stage_dir, 16);
AT(apus_session_api, seed, 24);
AT(apus_session_api, event, 32);
AT(apus_session_api, result, 40);
AT(apus_session_api, trainer_open, 48);
AT(apus_session_api, trainer_close, 56);
AT(apus_session_api, trainer_step, 64);
AT(apus_session_api, trainer_max_steps, 72);
AT(apus_session_api, train_step, 80);
AT(apus_session_api, trainer_evaluate, 88);
AT(apus_session_api, trainer_checkpoint, 96);
AT(apus_session_api, trainer_finish, 104);
AT(apus_session_api, evaluate, 112);
AT(apus_session_api, generator_open, 120);
AT(apus_session_api, generator_close, 128);
AT(apus_session_api, generator_submit, 136);
AT(apus_session_api, generator_cancel, 144);
AT(apus_session_api, generator_step, 152);
AT(apus_session_api, generate, 160);
AT(apus_session_api, rows_open, 168);
AT(apus_session_api, rows_example, 176);
AT(apus_session_api, rows_judge, 184);
AT(apus_session_api, rows_close, 192);
AT(apus_session_api, export_model, 200);
AT(apus_session_api, trainer_plan, 208);
AT(apus_session_api, evaluate_plan, 216);
AT(apus_session_api, generator_plan, 224);
SIZE(apus_session_api, 232);

AT(apus_stage_ops, size, 0);
AT(apus_stage_ops, run, 8);
AT(apus_stage_ops, plan, 16);
SIZE(apus_stage_ops, 24);

AT(apus_sampler_ops, size, 0);
AT(apus_sampler_ops, open, 8);
AT(apus_sampler_ops, close, 16);
AT(apus_sampler_ops, sample, 24);
SIZE(apus_sampler_ops, 32);

AT(apus_tracker_run, size, 0);
AT(apus_tracker_run, run_dir, 8);
AT(apus_tracker_run, stage_dir, 16);
AT(apus_tracker_run, stage, 24);
AT(apus_tracker_run, stage_type, 32);
AT(apus_tracker_run, stage_index, 40);
AT(apus_tracker_run, n_stages, 44);
AT(apus_tracker_run, interactive, 48);
AT(apus_tracker_run, config, 56);
SIZE(apus_tracker_run, 64);

AT(apus_tracker_ops, size, 0);
AT(apus_tracker_ops, open, 8);
AT(apus_tracker_ops, event, 16);
AT(apus_tracker_ops, close, 24);
SIZE(apus_tracker_ops, 32);

AT(apus_tokens, ids, 0);
AT(apus_tokens, begin, 8);
AT(apus_tokens, n, 16);
AT(apus_tokens, capacity, 24);
SIZE(apus_tokens, 32);

AT(apus_tokenizer_ops, size, 0);
AT(apus_tokenizer_ops, claims, 8);
AT(apus_tokenizer_ops, open, 16);
AT(apus_tokenizer_ops, close, 24);
AT(apus_tokenizer_ops, encode, 32);
AT(apus_tokenizer_ops, decode, 40);
AT(apus_tokenizer_ops, vocab_size, 48);
AT(apus_tokenizer_ops, token, 56);
AT(apus_tokenizer_ops, id, 64);
AT(apus_tokenizer_ops, is_special, 72);
AT(apus_tokenizer_ops, encode_parallel, 80);
SIZE(apus_tokenizer_ops, 88);

/* clang-format on */
int main(void)
{
    printf("385 fields of 42 structs and 92 constants lie where they lay\n");
    return 0;
}
