// ftrt._C.kernels: the CUDA runtime. Failures arrive in Python as exceptions of ftrt.errors.
#include "kernels.h"

#include <pybind11/stl.h>

#include <string>
#include <system_error>
#include <vector>

#include "ftrt/cuda_cache.h"
#include "ftrt/cuda_compiler.h"
#include "ftrt/cuda_driver.h"
#include "ftrt/cuda_error.h"

namespace ftrt::bindings {
namespace {

namespace py = pybind11;
using namespace py::literals;
using Release = py::call_guard<py::gil_scoped_release>;

const char* exception_name(cuda::Fault fault) {
  switch (fault) {
    case cuda::Fault::kMissing:
      return "UnsupportedError";
    case cuda::Fault::kInvalid:
      return "UsageError";
    default:
      return "FtrtError";
  }
}

void raise(const char* name, const char* text) {
  const py::object type = py::module_::import("ftrt.errors").attr(name);
  PyErr_SetString(type.ptr(), text);
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const cuda::Error& error) {
    raise(exception_name(error.fault), error.what());
  } catch (const std::system_error& error) {
    PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), error.what()).ptr());
  }
}

py::dict describe(const cuda::Entry& entry) {
  return py::dict("key"_a = entry.key, "label"_a = entry.label,
                  "compiler"_a = py::make_tuple(entry.major, entry.minor),
                  "image"_a = py::bytes(entry.image));
}

// An entry or None, and the notes.
template <typename Find>
py::tuple found(const std::string& path, const std::string& key, Find find) {
  std::vector<std::string> notes;
  std::optional<cuda::Entry> entry;
  {
    const py::gil_scoped_release release;
    entry = find(path, key, notes);
  }
  return py::make_tuple(entry ? py::object(describe(*entry)) : py::none(), notes);
}

py::tuple compile(const cuda::Source& source, const std::string& arch, bool is_verbose) {
  cuda::Compiled made;
  {
    const py::gil_scoped_release release;
    made = cuda::compile(source, arch, is_verbose);
  }
  return py::make_tuple(py::bytes(made.image), made.log);
}

py::tuple compile_cached(const cuda::Source& source, const std::string& arch,
                         const std::string& label, const std::string& folder, bool is_leader,
                         double leader_seconds, double lock_seconds) {
  std::vector<std::string> notes;
  cuda::Cached cached;
  {
    const py::gil_scoped_release release;
    cached = cuda::compile_cached(source, arch, label, folder,
                                  {is_leader, leader_seconds, lock_seconds}, notes);
  }
  return py::make_tuple(describe(cached.entry), cached.was_compiled, cached.log, notes);
}

void write_bundle(const std::string& path, const std::vector<py::dict>& entries) {
  std::vector<cuda::Entry> written;
  for (const py::dict& entry : entries) {
    const auto [major, minor] = entry["compiler"].cast<std::pair<int, int>>();
    written.push_back({entry["key"].cast<std::string>(), entry["label"].cast<std::string>(), major,
                       minor, entry["image"].cast<std::string>()});
  }
  const py::gil_scoped_release release;
  cuda::write_bundle(path, written);
}

py::list describe(const std::vector<cuda::Listed>& all) {
  py::list result;
  for (const cuda::Listed& one : all) {
    result.append(py::dict("file"_a = one.file, "problem"_a = one.problem, "key"_a = one.entry.key,
                           "label"_a = one.entry.label,
                           "compiler"_a = py::make_tuple(one.entry.major, one.entry.minor),
                           "bytes"_a = one.bytes));
  }
  return result;
}

py::dict device_facts(int device) {
  const cuda::DeviceFacts facts = cuda::device_facts(device);
  return py::dict("name"_a = facts.name, "arch"_a = py::make_tuple(facts.major, facts.minor),
                  "multiprocessors"_a = facts.multiprocessors,
                  "shared_limit"_a = facts.shared_limit);
}

py::dict compiler_facts(const cuda::CompilerFacts& facts) {
  return py::dict("path"_a = facts.path, "version"_a = py::make_tuple(facts.major, facts.minor),
                  "arches"_a = facts.arches);
}

// Other threads run meanwhile: the driver waits here when the stream's queue is full, perhaps for a
// callback that needs Python.
void launch(const cuda::Function& function, const std::array<uint32_t, 3>& grid,
            uint32_t shared_bytes, uintptr_t stream, const py::bytes& parameters) {
  char* data;
  Py_ssize_t bytes;
  if (PyBytes_AsStringAndSize(parameters.ptr(), &data, &bytes) != 0) throw py::error_already_set();
  const py::gil_scoped_release release;
  function.launch({grid[0], grid[1], grid[2]}, shared_bytes, reinterpret_cast<void*>(stream), data,
                  static_cast<size_t>(bytes));
}

void add_compiler(py::module_& m) {
  py::class_<cuda::Source>(m, "Source", "A translation unit: name, text, headers and options.")
      .def(py::init<std::string, std::string, std::vector<std::pair<std::string, std::string>>,
                    std::vector<std::string>>(),
           "name"_a, "text"_a, "headers"_a, "options"_a);
  m.def(
      "open_compiler",
      [](const std::vector<std::string>& candidates) {
        const cuda::CompilerFacts* facts;
        {
          const py::gil_scoped_release release;
          facts = &cuda::open_compiler(candidates);
        }
        return compiler_facts(*facts);
      },
      "candidates"_a,
      "Opens the first NVRTC of these that loads, once a process: path, version and arches.");
  m.def("compile", &compile, "source"_a, "arch"_a, "is_verbose"_a = false,
        "The cubin and the compiler's log, with each kernel's resources if verbose.");
  m.def("source_key", &cuda::source_key, "source"_a, "arch"_a,
        "What the cubin is looked up by, 64 hexadecimal digits.");
}

void add_entries(py::module_& m) {
  m.def("compile_cached", &compile_cached, "source"_a, "arch"_a, "label"_a, "folder"_a,
        "is_leader"_a, "leader_seconds"_a, "lock_seconds"_a,
        "An entry of the cache folder, compiled if it must be; whether it was; the compiler's log;"
        " notes.");
  m.def(
      "find_in_cache",
      [](const std::string& folder, const std::string& key) {
        return found(folder, key, cuda::find_in_cache);
      },
      "folder"_a, "key"_a, "An entry of whichever compiler, or None; notes.");
  m.def(
      "find_in_bundle",
      [](const std::string& path, const std::string& key) {
        return found(path, key, cuda::find_in_bundle);
      },
      "path"_a, "key"_a, "An entry or None; notes.");
  m.def("write_bundle", &write_bundle, "path"_a, "entries"_a,
        "Writes entries as a folder, or as one file if the path has a suffix.");
  m.def(
      "find_in_bytes",
      [](const std::string& file, const py::bytes& bytes, const std::string& key) {
        return found(file, key,
                     [view = std::string_view(bytes)](auto& name, auto& of, auto& notes) {
                       return cuda::find_in_bytes(name, view, of, notes);
                     });
      },
      "file"_a, "bytes"_a, "key"_a, "As find_in_bundle, in the bytes of a bundle's file.");
  m.def(
      "list_entries", [](const std::string& path) { return describe(cuda::list_entries(path)); },
      "path"_a, "What a cache folder or a bundle holds, without the images.");
  m.def(
      "list_bytes",
      [](const std::string& file, const py::bytes& bytes) {
        return describe(cuda::list_bytes(file, std::string_view(bytes)));
      },
      "file"_a, "bytes"_a, "As list_entries, of the bytes of a bundle's file.");
}

void add_driver(py::module_& m) {
  m.def(
      "driver_facts",
      [] {
        const cuda::DriverFacts facts = cuda::driver_facts();
        return py::dict("path"_a = facts.path, "version"_a = facts.version);
      },
      "Path of libcuda and the CUDA version it knows; initialises it.");
  m.def("device_count", &cuda::device_count, "How many devices the driver sees.");
  m.def("device_facts", &device_facts, "device"_a,
        "Name, compute capability, multiprocessors and shared memory of a device.");
  py::class_<cuda::Function>(m, "Function", "A kernel on one device.")
      .def(py::init<const std::string&, const std::string&, const std::string&, int, int, size_t>(),
           "image"_a, "name"_a, "label"_a, "device"_a, "threads"_a, "parameter_bytes"_a, Release())
      .def("launch", &launch, "grid"_a, "shared_bytes"_a, "stream"_a, "parameters"_a,
           "Launches on the stream, without waiting.")
      .def_property_readonly("registers", &cuda::Function::registers)
      .def_property_readonly("local_bytes", &cuda::Function::local_bytes)
      .def_property_readonly("static_shared_bytes", &cuda::Function::static_shared_bytes)
      .def_property_readonly("dynamic_shared_limit", &cuda::Function::dynamic_shared_limit);
}

}  // namespace

void add_kernels(pybind11::module_& parent) {
  pybind11::module_ m =
      parent.def_submodule("kernels", "Compiles, keeps and launches CUDA kernels.");
  pybind11::register_local_exception_translator(&translate);
  add_compiler(m);
  add_entries(m);
  add_driver(m);
}

}  // namespace ftrt::bindings
