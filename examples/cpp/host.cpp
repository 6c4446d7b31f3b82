// Ask an exported model about CSV files, in C++ through OpenVINO.
//
//     host MODEL.onnx SEQUENCE.csv [SEQUENCE.csv ...]
//
// A file is one sequence: feature names in its first line, in any order, then one line a step.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Sequence {
    std::size_t time = 0;
    std::vector<float> values;  // (time, features)
};

// A file's metadata, as OpenVINO hands them on: texts, some of them JSON.
std::string metadata(const ov::Model& model, const std::string& key) {
    const auto found = model.has_rt_info("framework", key);
    return found ? model.get_rt_info<std::string>("framework", key) : "";
}

std::string utf8(unsigned code) {
    if (code < 0x80) return {char(code)};
    if (code < 0x800) return {char(0xC0 | code >> 6), char(0x80 | (code & 0x3F))};
    return {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F))};
}

// The strings of one list in a JSON text, such as {"features": ["a", "b"]}. Larger programs have a JSON library.
std::vector<std::string> list_of(const std::string& json, const std::string& key) {
    std::vector<std::string> items;
    auto at = json.find("\"" + key + "\": [");
    if (at == std::string::npos) return items;
    for (at = json.find('[', at) + 1; json.at(at) != ']'; ++at) {
        if (json[at] != '"') continue;
        std::string item;
        for (++at; json.at(at) != '"'; ++at) {
            if (json[at] != '\\') item += json[at];
            else if (json.at(++at) != 'u') item += json[at];
            else item += utf8(std::stoul(json.substr(at + 1, 4), nullptr, 16)), at += 4;
        }
        items.push_back(item);
    }
    return items;
}

long number_of(const std::string& json, const std::string& key) {
    const auto at = json.find("\"" + key + "\": ");
    return at == std::string::npos ? 0 : std::strtol(json.c_str() + at + key.size() + 4, nullptr, 10);
}

std::vector<std::string> cells_of(std::string line) {
    std::vector<std::string> cells;
    line.erase(std::remove(line.begin(), line.end(), '\r'), line.end());
    std::istringstream stream(line);
    for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
    return cells;
}

Sequence read_sequence(const std::string& path, const std::vector<std::string>& features) {
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line)) throw std::runtime_error(path + ": cannot be read, or empty");
    const auto names = cells_of(line);
    std::vector<std::size_t> columns;  // in the model's order, whatever the file's is
    for (const auto& feature : features) {
        const auto found = std::find(names.begin(), names.end(), feature);
        if (found == names.end()) throw std::runtime_error(path + ": no column " + feature);
        columns.push_back(found - names.begin());
    }
    Sequence sequence;
    while (std::getline(file, line)) {
        const auto cells = cells_of(line);
        if (cells.empty()) continue;
        ++sequence.time;
        for (const auto column : columns) {
            char* end = nullptr;
            const char* text = column < cells.size() ? cells[column].c_str() : "";
            const float value = std::strtof(text, &end);
            if (end == text || *end || !std::isfinite(value)) {
                const auto place = path + ", line " + std::to_string(sequence.time + 1);
                throw std::runtime_error(place + ": expected a number, found '" + text + "'");
            }
            sequence.values.push_back(value);
        }
    }
    return sequence;
}

// Rows of numbers, one a step for task `tag`, else one for the sequence (a forecast: one a step ahead).
void print(const std::string& path, const float* numbers, std::size_t rows, std::size_t columns,
           std::size_t first = 0) {
    for (std::size_t row = 0; row < rows; ++row) {
        std::cout << path << ',' << first + row;
        for (std::size_t column = 0; column < columns; ++column) std::cout << ',' << numbers[row * columns + column];
        std::cout << '\n';
    }
}

// One call for all: zeros behind the shorter ones, and `lengths` says where each ends.
void ask_whole(ov::InferRequest request, const std::string& task, std::size_t features,
               const std::vector<std::string>& paths, const std::vector<Sequence>& sequences) {
    std::size_t time = 1;
    for (const auto& sequence : sequences) time = std::max(time, sequence.time);
    ov::Tensor x(ov::element::f32, {sequences.size(), time, features});
    ov::Tensor lengths(ov::element::i64, {sequences.size()});
    std::fill_n(x.data<float>(), x.get_size(), 0.0f);
    for (std::size_t row = 0; row < sequences.size(); ++row) {
        const auto& values = sequences[row].values;
        std::copy(values.begin(), values.end(), x.data<float>() + row * time * features);
        lengths.data<int64_t>()[row] = sequences[row].time;
    }
    request.set_tensor("x", x);
    request.set_tensor("lengths", lengths);
    request.infer();
    const auto answer = request.get_output_tensor(0);
    const auto shape = answer.get_shape();
    const std::size_t size = answer.get_size() / shape[0];  // of one sequence's answer
    const std::size_t steps = shape.size() > 2 ? shape[1] : 1;
    for (std::size_t row = 0; row < sequences.size(); ++row) {
        const std::size_t rows = task == "tag" ? sequences[row].time : steps;
        print(paths[row], answer.data<float>() + row * size, rows, size / steps);
    }
}

// One call a step; what comes out of a call as state goes into the next. The first state is zeros.
void ask_stepwise(ov::InferRequest request, const std::string& task, std::size_t features,
                  const std::string& path, const Sequence& sequence) {
    for (const std::string name : {"h", "c"}) {
        auto shape = request.get_compiled_model().input(name).get_partial_shape();
        shape[1] = 1;  // one stream
        ov::Tensor state(ov::element::f32, shape.to_shape());
        std::fill_n(state.data<float>(), state.get_size(), 0.0f);
        request.set_tensor(name, state);
    }
    for (std::size_t step = 0; step < sequence.time; ++step) {
        ov::Tensor x(ov::element::f32, {1, 1, features});
        std::copy_n(sequence.values.begin() + step * features, features, x.data<float>());
        request.set_tensor("x", x);
        request.infer();
        for (const std::string name : {"h", "c"}) {
            const auto next = request.get_tensor(name + "_next");
            ov::Tensor kept(next.get_element_type(), next.get_shape());  // the output's own memory is written again
            next.copy_to(kept);
            request.set_tensor(name, kept);
        }
        const auto answer = request.get_output_tensor(0);
        const std::size_t rows = answer.get_shape().size() > 2 ? answer.get_shape()[1] : 1;
        if (task == "tag") print(path, answer.data<float>(), 1, answer.get_size(), step);
        else if (step + 1 == sequence.time) print(path, answer.data<float>(), rows, answer.get_size() / rows);
    }
}

int main(int count, char** arguments) try {
    if (count < 3) throw std::runtime_error("usage: host MODEL.onnx SEQUENCE.csv [SEQUENCE.csv ...]");
    ov::Core core;
    const auto model = core.read_model(arguments[1]);
    if (metadata(*model, "format") != "lstm_compile" || metadata(*model, "interface_version") != "1")
        throw std::runtime_error("not a model of lstm-compile, interface version 1: export it again");
    if (metadata(*model, "runtimes") != "any")  // its lengths would be passed over without a word
        throw std::runtime_error("this file is for ONNX Runtime alone: export it with --profile portable");
    const bool streams = !metadata(*model, "state").empty();
    const auto inputs = metadata(*model, "inputs");
    if (inputs != R"(["x", "lengths"])" && inputs != R"(["x", "h", "c"])")
        throw std::runtime_error("this program gives x and lengths; the model reads " + inputs);
    const auto task = metadata(*model, "task");
    const auto schema = metadata(*model, "schema");
    const auto features = list_of(schema, "features");
    const std::vector<std::string> paths(arguments + 2, arguments + count);
    std::vector<Sequence> sequences;
    for (const auto& path : paths) sequences.push_back(read_sequence(path, features));
    if (task == "forecast" && !streams)  // the latest steps, as many as the model was trained on
        for (auto& sequence : sequences) {
            const std::size_t kept = std::min<std::size_t>(sequence.time, number_of(metadata(*model, "config"), "context"));
            sequence.values.erase(sequence.values.begin(), sequence.values.end() - kept * features.size());
            sequence.time = kept;
        }
    // float32 throughout: the runtime's own choice may be bfloat16 on some machines
    auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    std::cout.precision(9);
    std::cout << "sequence,step";
    for (const auto& name : list_of(schema, task == "classify" || task == "tag" ? "classes" : "targets")) std::cout << ',' << name;
    std::cout << '\n';
    auto request = compiled.create_infer_request();
    if (!streams) ask_whole(request, task, features.size(), paths, sequences);
    for (std::size_t row = 0; streams && row < paths.size(); ++row)
        ask_stepwise(request, task, features.size(), paths[row], sequences[row]);
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
