/* core/run/start.c: bringing the host up: extensions announced, plugins loaded, ops and kernels registered. */
#include "config/config.h"
#include "graph/graph.h"
#include "model/session.h"
#include "module/module.h"
#include "run/pipeline.h"

apus_status apus_start(const char *const *plugin_dirs, size_t n, apus_error *err)
{
    apus_host_announce("apus.graph/1", apus_graph_table());
    apus_host_announce("apus.session/1", apus_session_table());
    apus_params_know_places(apus_pipeline_places);
    apus_status st = apus_modules_load(plugin_dirs, n, 0, err);
    return st == APUS_OK ? apus_ops_load(err) : st;
}
