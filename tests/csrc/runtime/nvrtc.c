/* A libnvrtc for tests. Its cubin is the options and the source. The environment says:
     FAKE_NVRTC_VERSION  "12.8" without
     FAKE_NVRTC_ARCHES   "80,86,89,90,100,120" without
     FAKE_NVRTC_LOG      a file that gets one line a compilation: process and architecture
     FAKE_NVRTC_MS       how long a compilation takes
   A source with "#error" does not compile, one with "#warning" does with a log. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct program {
  char text[1 << 14], log[64], image[1 << 15];
};

int nvrtcVersion(int* major, int* minor) {
  const char* version = getenv("FAKE_NVRTC_VERSION");
  return sscanf(version ? version : "12.8", "%d.%d", major, minor) == 2 ? 0 : 3;
}
const char* nvrtcGetErrorString(int code) {
  return code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_OTHER";
}
static int read_arches(int* arches) {
  const char* list = getenv("FAKE_NVRTC_ARCHES");
  int count = 0, read = 0;
  if (!list) list = "80,86,89,90,100,120";
  for (int arch; sscanf(list, "%d%n", &arch, &read) == 1; ++count) {
    if (arches) arches[count] = arch;
    list += read;
    if (*list == ',') ++list;
  }
  return count;
}
int nvrtcGetNumSupportedArchs(int* count) {
  *count = read_arches(NULL);
  return 0;
}
int nvrtcGetSupportedArchs(int* arches) {
  read_arches(arches);
  return 0;
}
int nvrtcCreateProgram(void** program, const char* text, const char* name, int count,
                       const char* const* headers, const char* const* names) {
  struct program* p = calloc(1, sizeof *p);
  snprintf(p->text, sizeof p->text, "%s:%s", name, text);
  for (int i = 0; i < count; ++i)
    snprintf(p->text + strlen(p->text), sizeof p->text - strlen(p->text), "[%s=%s]", names[i],
             headers[i]);
  *program = p;
  return 0;
}
int nvrtcCompileProgram(void* program, int count, const char* const* options) {
  struct program* p = program;
  const char *log = getenv("FAKE_NVRTC_LOG"), *wait = getenv("FAKE_NVRTC_MS");
  char line[256];
  int length = snprintf(line, sizeof line, "%d %s\n", (int)getpid(), options[0]);
  int file = log ? open(log, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
  if (file >= 0 && write(file, line, length) != length) return 11;
  if (file >= 0) close(file);
  if (wait) usleep(1000 * atoi(wait));
  for (int i = 0; i < count; ++i)
    snprintf(p->image + strlen(p->image), sizeof p->image - strlen(p->image), "%s ", options[i]);
  snprintf(p->image + strlen(p->image), sizeof p->image - strlen(p->image), "%s", p->text);
  if (strstr(p->text, "#error")) return strcpy(p->log, "line 1: error: told to fail\n"), 6;
  if (strstr(p->text, "#warning")) strcpy(p->log, "line 1: warning: told to warn\n");
  return 0;
}
int nvrtcGetProgramLogSize(void* program, size_t* bytes) {
  *bytes = strlen(((struct program*)program)->log) + 1;
  return 0;
}
int nvrtcGetProgramLog(void* program, char* log) {
  strcpy(log, ((struct program*)program)->log);
  return 0;
}
int nvrtcGetCUBINSize(void* program, size_t* bytes) {
  *bytes = strlen(((struct program*)program)->image);
  return 0;
}
int nvrtcGetCUBIN(void* program, char* image) {
  struct program* p = program;
  memcpy(image, p->image, strlen(p->image));
  return 0;
}
int nvrtcDestroyProgram(void** program) {
  free(*program);
  return 0;
}
