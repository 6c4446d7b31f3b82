/* Ask an exported model about CSV files, in C through ONNX Runtime.
 *
 *     host MODEL.onnx SEQUENCE.csv [SEQUENCE.csv ...]
 *
 * A file is one sequence: feature names in its first line, in any order, then one line a step.
 */

#include <math.h>
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_FEATURES = 256, LONGEST_LINE = 1 << 16 };

static const OrtApi *ort;

static void fail(const char *where, const char *what) {
    fprintf(stderr, "%s: %s\n", where, what);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status) fail("onnxruntime", ort->GetErrorMessage(status));
}

/* ---- the file's metadata: texts, some of them JSON ---- */

static char *metadata(const OrtModelMetadata *all, OrtAllocator *memory, const char *key) {
    char *text = NULL;
    check(ort->ModelMetadataLookupCustomMetadataMap(all, memory, key, &text));
    return text ? text : "";
}

/* The strings of the list "features" in the JSON text `schema`; escapes other than \" and \\ are beyond this program. */
static int features_of(const char *schema, char **names) {
    int count = 0;
    const char *at = strstr(schema, "\"features\": [");
    if (!at) fail("schema", "no features");
    for (at = strchr(at, '[') + 1; *at && *at != ']'; ++at) {
        if (*at != '"' || count == MOST_FEATURES) continue;
        char *name = names[count++] = calloc(strlen(at), 1);
        for (++at; *at && *at != '"'; ++at) {
            if (*at == '\\' && *++at == 'u') fail("schema", "this program reads ASCII names");
            *name++ = *at;
        }
    }
    return count;
}

/* ---- the sequence ---- */

static int split(char *line, char **cells) {
    int count = 0;
    line[strcspn(line, "\r\n")] = 0;
    for (char *rest = line; rest && count < MOST_FEATURES;) {
        cells[count++] = rest;
        rest = strchr(rest, ',');
        if (rest) *rest++ = 0;
    }
    return count;
}

/* (time, features) numbers, the columns in the model's order; returns time. */
static int64_t read_sequence(const char *path, char **features, int count, float **values) {
    static char line[LONGEST_LINE];
    char *cells[MOST_FEATURES];
    int columns[MOST_FEATURES];
    int64_t time = 0;
    FILE *file = fopen(path, "r");
    if (!file || !fgets(line, sizeof line, file)) fail(path, "cannot be read, or empty");
    const int found = split(line, cells);
    for (int feature = 0; feature < count; ++feature) {
        int column = 0;
        while (column < found && strcmp(cells[column], features[feature])) ++column;
        if (column == found) fail(features[feature], "no such column");
        columns[feature] = column;
    }
    *values = NULL;
    while (fgets(line, sizeof line, file)) {
        const int read = split(line, cells);
        *values = realloc(*values, (time + 1) * count * sizeof(float));
        for (int feature = 0; feature < count; ++feature) {
            char *end = "";
            const char *text = columns[feature] < read ? cells[columns[feature]] : "";
            const float value = strtof(text, &end);
            if (end == text || *end || !isfinite(value)) fail(path, "every cell must be a finite number");
            (*values)[time * count + feature] = value;
        }
        ++time;
    }
    fclose(file);
    return time;
}

/* ---- asking ---- */

static OrtValue *tensor(void *data, size_t bytes, const int64_t *shape, size_t rank, ONNXTensorElementDataType type) {
    OrtMemoryInfo *cpu;
    OrtValue *value;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu));
    check(ort->CreateTensorWithDataAsOrtValue(cpu, data, bytes, shape, rank, type, &value));
    ort->ReleaseMemoryInfo(cpu);
    return value;
}

static OrtValue *floats(float *data, const int64_t *shape) {
    const size_t bytes = shape[0] * shape[1] * shape[2] * sizeof(float);
    return tensor(data, bytes, shape, 3, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
}

/* Rows of numbers of one sequence, one a step for task `tag`, else one for the sequence (a forecast: one a step ahead). */
static void print(const char *path, const OrtValue *answer, int64_t batch, int64_t row, int64_t time, int64_t first) {
    const float *numbers;
    int64_t shape[4];
    size_t rank, count;
    OrtTensorTypeAndShapeInfo *info;
    check(ort->GetTensorMutableData((OrtValue *)answer, (void **)&numbers));
    check(ort->GetTensorTypeAndShape(answer, &info));
    check(ort->GetDimensionsCount(info, &rank));
    check(ort->GetDimensions(info, shape, rank));
    check(ort->GetTensorShapeElementCount(info, &count));
    ort->ReleaseTensorTypeAndShapeInfo(info);
    const int64_t steps = rank > 2 ? shape[1] : 1;
    const int64_t columns = count / batch / steps;
    for (int64_t step = 0; step < (time >= 0 ? time : steps); ++step) {
        printf("%s,%lld", path, (long long)(first + step));
        for (int64_t i = 0; i < columns; ++i) printf(",%.9g", numbers[(row * steps + step) * columns + i]);
        printf("\n");
    }
}

/* One call for all: zeros behind the shorter ones, and `lengths` says where each ends. */
static void ask_whole(OrtSession *session, const char *answer, int tag, int features, int batch, char **paths,
                      float **values, const int64_t *lengths) {
    int64_t time = 1; /* a time of 0 ends the process */
    for (int row = 0; row < batch; ++row) time = lengths[row] > time ? lengths[row] : time;
    float *x = calloc(batch * time * features, sizeof(float));
    for (int row = 0; row < batch; ++row) {
        if (lengths[row]) memcpy(x + row * time * features, values[row], lengths[row] * features * sizeof(float));
    }
    const int64_t shape[3] = {batch, time, features};
    const char *names[2] = {"x", "lengths"};
    const OrtValue *inputs[2] = {
        floats(x, shape),
        tensor((void *)lengths, batch * sizeof(int64_t), shape, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
    };
    OrtValue *output = NULL;
    check(ort->Run(session, NULL, names, inputs, 2, &answer, 1, &output));
    for (int row = 0; row < batch; ++row) print(paths[row], output, batch, row, tag ? lengths[row] : -1, 0);
}

/* One call a step; what comes out of a call as state goes into the next. The first state is zeros. */
static void ask_stepwise(OrtSession *session, const char *answer, int tag, int features, const int64_t *state_shape,
                         const char *path, float *values, int64_t time) {
    const char *inputs[3] = {"x", "h", "c"}, *outputs[3] = {answer, "h_next", "c_next"};
    const int64_t shape[3] = {1, 1, features};
    const size_t size = state_shape[0] * state_shape[2];
    const OrtValue *given[3] = {
        NULL,
        floats(calloc(size, sizeof(float)), state_shape),
        floats(calloc(size, sizeof(float)), state_shape),
    };
    for (int64_t step = 0; step < time; ++step) {
        OrtValue *found[3] = {NULL, NULL, NULL};
        given[0] = floats(values + step * features, shape);
        check(ort->Run(session, NULL, inputs, given, 3, outputs, 3, found));
        if (tag || step == time - 1) print(path, found[0], 1, 0, tag ? 1 : -1, tag ? step : 0);
        for (int part = 0; part < 3; ++part) ort->ReleaseValue((OrtValue *)given[part]);
        ort->ReleaseValue(found[0]);
        given[1] = found[1];
        given[2] = found[2];
    }
}

/* (layers, 1, hidden) of the input `h`: one stream. */
static void read_state_shape(const OrtSession *session, int64_t *shape) {
    OrtTypeInfo *type;
    const OrtTensorTypeAndShapeInfo *info;
    check(ort->SessionGetInputTypeInfo(session, 1, &type));
    check(ort->CastTypeInfoToTensorInfo(type, &info));
    check(ort->GetDimensions(info, shape, 3));
    shape[1] = 1;
    ort->ReleaseTypeInfo(type);
}

int main(int count, char **arguments) {
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) fail("onnxruntime", "the library is older than the header");
    if (count < 3) fail("usage", "host MODEL.onnx SEQUENCE.csv [SEQUENCE.csv ...]");
    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtModelMetadata *all;
    OrtAllocator *memory;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "host", &environment));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateSession(environment, arguments[1], options, &session));
    check(ort->SessionGetModelMetadata(session, &all));
    check(ort->GetAllocatorWithDefaultOptions(&memory));
    if (strcmp(metadata(all, memory, "format"), "lstm_compile") || strcmp(metadata(all, memory, "interface_version"), "1"))
        fail(arguments[1], "not a model of lstm-compile, interface version 1: export it again");
    const char *inputs = metadata(all, memory, "inputs"), *task = metadata(all, memory, "task");
    const int streams = !strcmp(inputs, "[\"x\", \"h\", \"c\"]");
    if (!streams && strcmp(inputs, "[\"x\", \"lengths\"]")) fail(inputs, "this program gives x and lengths");
    char *answer, *features[MOST_FEATURES];
    check(ort->SessionGetOutputName(session, 0, memory, &answer));
    const int size = features_of(metadata(all, memory, "schema"), features), batch = count - 2;
    float **values = calloc(batch, sizeof *values);
    int64_t *lengths = calloc(batch, sizeof *lengths), state_shape[3];
    const char *context = strstr(metadata(all, memory, "config"), "\"context\": ");
    for (int row = 0; row < batch; ++row) {
        lengths[row] = read_sequence(arguments[row + 2], features, size, &values[row]);
        const int64_t most = !strcmp(task, "forecast") && !streams && context ? atoll(context + 11) : INT64_MAX;
        if (lengths[row] > most) { /* the latest steps, as many as the model was trained on */
            values[row] += (lengths[row] - most) * size;
            lengths[row] = most;
        }
    }
    const int tag = !strcmp(task, "tag");
    if (streams) read_state_shape(session, state_shape);
    printf("sequence,step,%s\n", answer);
    for (int row = 0; streams && row < batch; ++row)
        ask_stepwise(session, answer, tag, size, state_shape, arguments[row + 2], values[row], lengths[row]);
    if (!streams) ask_whole(session, answer, tag, size, batch, arguments + 2, values, lengths);
}
