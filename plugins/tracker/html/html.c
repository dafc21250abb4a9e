/*
 * Tracker html: RUN/STAGE/report.html, one file that needs nothing else: curves of loss, learning rate, gradient norm, reward margin
 * and whatever else the events carry, where the time goes, with the configuration. Written when the stage ends, whatever its end.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <apus/plugin.h>
#include <apus/session.h>

#define MAX_SERIES 32

typedef struct series {
    char name[64];
    double *x, *y;
    size_t n, capacity;
} series;

typedef struct html {
    const apus_host *host;
    char path[4400], title[256];
    series series[MAX_SERIES];
    size_t n_series;
    char *config;
    char **notes;
    size_t n_notes;
    double step_seconds, data_seconds; /* sums over the steps: all of a step, and what it waited for its rows */
    apus_node *profile;                /* NULL: none */
} html;

static apus_status open_tracker(const apus_host *host, const apus_node *params, const apus_tracker_run *run, void **tracker, apus_error *err)
{
    (void)params;
    html *h = host->alloc(sizeof *h);
    if (h == NULL)
        return apus_fail(err, APUS_E_MEMORY, "out of memory");
    h->host = host;
    snprintf(h->path, sizeof h->path, "%s/report.html", run->stage_dir);
    snprintf(h->title, sizeof h->title, "%.120s: %.100s", run->run_dir, run->stage);
    h->config = host->node->write_json(run->config, APUS_JSON_INDENT, NULL);
    *tracker = h;
    return APUS_OK;
}

static int add_point(html *h, const char *name, double x, double y)
{
    size_t i = 0;
    while (i < h->n_series && strcmp(h->series[i].name, name) != 0)
        i++;
    if (i == MAX_SERIES)
        return 1;
    series *s = &h->series[i];
    if (i == h->n_series) {
        snprintf(s->name, sizeof s->name, "%s", name);
        h->n_series++;
    }
    if (s->n == s->capacity) {
        const size_t capacity = s->capacity ? s->capacity * 2 : 256;
        double *xs = realloc(s->x, capacity * sizeof *xs);
        if (xs != NULL)
            s->x = xs;
        double *ys = realloc(s->y, capacity * sizeof *ys);
        if (ys != NULL)
            s->y = ys;
        if (xs == NULL || ys == NULL)
            return 0;
        s->capacity = capacity;
    }
    s->x[s->n] = x;
    s->y[s->n++] = y;
    return 1;
}

static apus_status event(void *tracker, const apus_node *e, int replayed, apus_error *err)
{
    (void)replayed;
    html *h = tracker;
    const apus_node_api *node = h->host->node;
    const char *note = node->as_string(node->get(e, "note"), NULL);
    if (note != NULL) {
        char **grown = realloc(h->notes, (h->n_notes + 1) * sizeof *grown);
        if (grown == NULL)
            return apus_fail(err, APUS_E_MEMORY, "tracker html: out of memory");
        h->notes = grown;
        h->notes[h->n_notes] = strdup(note);
        h->n_notes += h->notes[h->n_notes] != NULL;
        return APUS_OK;
    }
    if (node->get(e, "profile") != NULL) {
        node->release(h->profile);
        h->profile = node->copy(node->get(e, "profile"));
        return APUS_OK;
    }
    if (node->get(e, "tokens_per_second") != NULL) {
        h->step_seconds += node->as_float(node->get(e, "tokens"), 0.0) / node->as_float(node->get(e, "tokens_per_second"), 1.0);
        h->data_seconds += node->as_float(node->get(e, "data_seconds"), 0.0);
    }
    const double step = node->as_float(node->get(e, "step"), 0.0);
    for (size_t i = 0; i < node->length(e); i++) {
        const char *key = node->key_at(e, i);
        const apus_node *v = node->at(e, i);
        if (strcmp(key, "step") == 0 || strcmp(key, "max_steps") == 0 || (node->kind(v) != APUS_NODE_FLOAT && node->kind(v) != APUS_NODE_INT))
            continue;
        if (!add_point(h, key, step, node->as_float(v, NAN)))
            return apus_fail(err, APUS_E_MEMORY, "tracker html: out of memory");
    }
    return APUS_OK;
}

static void write_escaped(FILE *f, const char *text)
{
    for (; text != NULL && *text != '\0'; text++) {
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '>')
            fputs("&gt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else
            fputc(*text, f);
    }
}

/* One curve as SVG. Long series are thinned to a point a pixel: the extremes of each column stay. */
static void write_curve(FILE *f, const series *s)
{
    enum { W = 460, H = 180, LEFT = 64, BOTTOM = 24, TOP = 8 };
    double low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < s->n; i++) {
        if (!isfinite(s->y[i]))
            continue;
        low = fmin(low, s->y[i]);
        high = fmax(high, s->y[i]);
    }
    const double x0 = s->x[0], x1 = s->x[s->n - 1] > x0 ? s->x[s->n - 1] : x0 + 1.0, range = high > low ? high - low : 1.0;
    fprintf(f, "<figure><figcaption>");
    write_escaped(f, s->name);
    fprintf(f, " <b>%.6g</b></figcaption><svg viewBox=\"0 0 %d %d\">", s->y[s->n - 1], W, H);
    for (int k = 0; k <= 4; k++) {
        const double y = TOP + (H - TOP - BOTTOM) * (1.0 - k / 4.0);
        fprintf(f, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\" class=\"y\">%.4g</text>", LEFT, W, y, y, LEFT - 6,
                y + 4, low + range * k / 4.0);
    }
    fprintf(f, "<text x=\"%d\" y=\"%d\">%g</text><text x=\"%d\" y=\"%d\" class=\"y\">%g</text><polyline points=\"", LEFT, H - 6, x0, W, H - 6, x1);
    const size_t stride = s->n / 2000 + 1;
    for (size_t i = 0; i < s->n; i++)
        if (isfinite(s->y[i]) && (i % stride == 0 || i + 1 == s->n))
            fprintf(f, "%.1f,%.1f ", LEFT + (W - LEFT) * (s->x[i] - x0) / (x1 - x0), TOP + (H - TOP - BOTTOM) * (1.0 - (s->y[i] - low) / range));
    fprintf(f, "\"/></svg></figure>\n");
}

/* Shares of a step as bars, the most first. */
static void write_profile(const html *h, FILE *f)
{
    const apus_node_api *node = h->host->node;
    const apus_node *ops = node->get(h->profile, "ops");
    fprintf(f, "<h2>Where the time of a step goes</h2><p>%.4g ms, the mean of %lld steps; each operation in ",
            node->as_float(node->get(h->profile, "seconds_per_step"), 0.0) * 1e3, (long long)node->as_int(node->get(h->profile, "steps"), 0));
    write_escaped(f, node->as_string(node->get(h->profile, "trace"), NULL));
    fputs(", which ui.perfetto.dev opens.</p><table><tr><th>operation<th>share<th><th>ms a step<th>calls a step<th>GFLOP/s\n", f);
    for (size_t i = 0; i < node->length(ops); i++) {
        const apus_node *op = node->at(ops, i), *gflops = node->get(op, "gflops");
        const double share = node->as_float(node->get(op, "share"), 0.0), steps = node->as_float(node->get(h->profile, "steps"), 1.0);
        fputs("<tr><td>", f);
        write_escaped(f, node->as_string(node->get(op, "op"), NULL));
        fprintf(f, "<td class=\"n\">%.1f %%<td><i style=\"width:%.0fpx\"></i><td class=\"n\">%.3f<td class=\"n\">%.4g<td class=\"n\">", share * 100.0,
                share * 300.0, node->as_float(node->get(op, "seconds_per_step"), 0.0) * 1e3, node->as_float(node->get(op, "calls"), 0.0) / steps);
        if (gflops != NULL)
            fprintf(f, "%.1f", node->as_float(gflops, 0.0));
        fputc('\n', f);
    }
    fputs("</table>", f);
}

static void write_report(const html *h, apus_status status)
{
    char aside[4420];
    snprintf(aside, sizeof aside, "%s.tmp", h->path);
    FILE *f = fopen(aside, "w");
    if (f == NULL)
        return;
    fputs("<!doctype html><meta charset=\"utf-8\"><title>", f);
    write_escaped(f, h->title);
    fputs("</title><style>body{font:14px system-ui,sans-serif;margin:2em auto;max-width:1000px;padding:0 1em;color:#222}"
          "main{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1em}figure{margin:0}figcaption{margin-bottom:.3em}"
          "svg{width:100%;background:#fafafa;border:1px solid #ddd}line{stroke:#e4e4e4}text{font-size:11px;fill:#666}.y{text-anchor:end}"
          "polyline{fill:none;stroke:#2563a8;stroke-width:1.5}pre{background:#fafafa;border:1px solid #ddd;padding:1em;overflow:auto}"
          "td,th{padding:.1em .6em;text-align:left}.n{text-align:right}i{display:block;height:.8em;background:#2563a8}</style><h1>",
          f);
    write_escaped(f, h->title);
    fprintf(f, "</h1><p>%s</p>", status == APUS_OK ? "Done." : status == APUS_E_STOPPED ? "Stopped; can be resumed." : "Ended with an error.");
    if (h->step_seconds > 0.0)
        fprintf(f, "<p>Steps took %.4g s in all, of which they waited for data %.3g s (%.2g %%).</p>", h->step_seconds, h->data_seconds,
                h->data_seconds / h->step_seconds * 100.0);
    if (h->n_notes > 0)
        fputs("<ul>", f);
    for (size_t i = 0; i < h->n_notes; i++) {
        fputs("<li>", f);
        write_escaped(f, h->notes[i]);
    }
    if (h->n_notes > 0)
        fputs("</ul>", f);
    fputs("<main>\n", f);
    for (size_t i = 0; i < h->n_series; i++)
        if (h->series[i].n > 0)
            write_curve(f, &h->series[i]);
    fputs("</main>", f);
    if (h->profile != NULL)
        write_profile(h, f);
    fputs("<h2>Configuration</h2><pre>", f);
    write_escaped(f, h->config);
    fputs("</pre>\n", f);
    const int good = ferror(f) == 0;
    if (fclose(f) == 0 && good)
        (void)rename(aside, h->path);
    else
        (void)remove(aside);
}

static void close_tracker(void *tracker, apus_status status)
{
    html *h = tracker;
    write_report(h, status);
    for (size_t i = 0; i < h->n_series; i++) {
        free(h->series[i].x);
        free(h->series[i].y);
    }
    for (size_t i = 0; i < h->n_notes; i++)
        free(h->notes[i]);
    free(h->notes);
    h->host->node->release(h->profile);
    h->host->free(h->config);
    h->host->free(h);
}

static const apus_tracker_ops ops = {.size = sizeof ops, .open = open_tracker, .event = event, .close = close_tracker};

static const apus_component components[] = {{.size = sizeof(apus_component),
                                             .kind = "tracker",
                                             .name = "html",
                                             .doc = "A report with curves, one self-contained file a stage.",
                                             .ops = &ops}};

static const apus_plugin plugin = {APUS_PLUGIN_HEAD,      .name = "html",           .version = "1.0.0", .license = "Apache-2.0",
                                   .doc = "HTML report.", .components = components, .n_components = 1};

APUS_EXPORT const apus_plugin *apus_plugin_v1(const apus_host *host)
{
    (void)host;
    return &plugin;
}
