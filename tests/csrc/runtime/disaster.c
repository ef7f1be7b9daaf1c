/* Preloaded into a process, DISASTER says what befalls it while it writes a `.tmp` file:
     write, fsync, rename   it is killed in the middle of that call (write: half is written)
     nolocks                the file system has no locks */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is(const char* name) {
  const char* told = getenv("DISASTER");
  return told && !strcmp(told, name);
}
static int is_temporary(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path);
  return length > 4 && !strncmp(path + length - 4, ".tmp", 4);
}
ssize_t write(int fd, const void* bytes, size_t count) {
  ssize_t (*real)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
  if (!is("write") || !is_temporary(fd)) return real(fd, bytes, count);
  real(fd, bytes, count / 2);
  return kill(getpid(), SIGKILL);
}
int fsync(int fd) {
  int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
  return is("fsync") && is_temporary(fd) ? kill(getpid(), SIGKILL) : real(fd);
}
int renameat(int from, const char* old, int to, const char* new) {
  int (*real)(int, const char*, int, const char*) = dlsym(RTLD_NEXT, "renameat");
  return is("rename") ? kill(getpid(), SIGKILL) : real(from, old, to, new);
}
int flock(int fd, int operation) {
  int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
  return is("nolocks") ? (errno = ENOLCK, -1) : real(fd, operation);
}
