/* Preloaded: tells which addresses C, C++ and Rust code connects to, which Python cannot see. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int connect(int socket, const struct sockaddr *address, socklen_t length) {
  char text[INET6_ADDRSTRLEN] = "unix", path[4096];
  int port = 0;
  if (address->sa_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
    port = ntohs(in->sin_port);
  } else if (address->sa_family == AF_INET6) {
    const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
    inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
    port = ntohs(in->sin6_port);
  }
  snprintf(path, sizeof path, "%s/%d.native", getenv("WATCHED"), getpid());
  FILE *file = fopen(path, "a");
  if (file) {
    fprintf(file, "%s %d\n", text, port);
    fclose(file);
  }
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return real(socket, address, length);
}
