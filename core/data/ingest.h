/* core/data/ingest: the rows of a part read, encoded on several threads and given to a sink in the order they stand in. */
#ifndef APUS_CORE_INGEST_H
#define APUS_CORE_INGEST_H

#include "data/encode.h"

/* threads: how many encode; what the sink gets does not depend on it. Rows are numbered from first_source. No more of the part
 * is in memory than some blocks of rows for each thread. */
apus_status apus_ingest(apus_data_part *part, const apus_encoder *encoder, uint64_t first_source, int threads, apus_row_sink *sink,
                        apus_losses *losses, apus_error *err);

#endif
