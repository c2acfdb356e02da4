/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/gateway.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void run(const struct gateway_process *made)
{
    const char *program = getenv(made->program);
    const char *level = getenv("IPC_TEST_LOG") ? "debug" : "error";

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setenv("NOTIFY_SOCKET", made->notify, 1);
    execl(program ? program : made->program, "gateway", "--config", made->config, "--log-level", level, NULL);
    perror(program ? program : made->program);
    _exit(127);
}

void gateway_process_ready(struct gateway_process *made)
{
    char text[512];
    ssize_t size;

    do {
        size = recv(made->notify_fd, text, sizeof(text) - 1, 0);
        text[size > 0 ? size : 0] = '\0';
    } while (size >= 0 && !strstr(text, "READY=1"));
}

void gateway_process_again(struct gateway_process *made)
{
    made->pid = fork_child();
    if (made->pid == 0)
        run(made);
    EXPECT(made->pid > 0);
    gateway_process_ready(made);
}

static void configure(const struct gateway_process *made, const char *config)
{
    FILE *file = fopen(made->config, "we");

    EXPECT(file != NULL);
    EXPECT(fputs(config, file) >= 0);
    EXPECT_EQ(fclose(file), 0);
}

void gateway_process_start(struct gateway_process *made, const char *program, const char *config)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};

    *made = (struct gateway_process){.program = program, .folder = "/tmp/ipc-test-XXXXXX"};
    EXPECT(mkdtemp(made->folder) != NULL);
    snprintf(made->config, sizeof(made->config), "%s/gateway.conf", made->folder);
    snprintf(made->notify, sizeof(made->notify), "%s/notify", made->folder);
    configure(made, config);
    made->notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    EXPECT(made->notify_fd >= 0);
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", made->notify);
    EXPECT_EQ(bind(made->notify_fd, (struct sockaddr *)&name, sizeof(name)), 0);
    gateway_process_again(made);
}

void gateway_process_reload(struct gateway_process *made, const char *config)
{
    configure(made, config);
    EXPECT_EQ(kill(made->pid, SIGHUP), 0);
    gateway_process_ready(made);
}

void gateway_process_kill(struct gateway_process *made)
{
    child_kill(made->pid);
    made->pid = 0;
}

void gateway_process_stop(struct gateway_process *made)
{
    kill(made->pid, SIGTERM);
    EXPECT_EQ(wait_child(made->pid), 0);
    close(made->notify_fd);
    EXPECT_EQ(unlink(made->config), 0);
    EXPECT_EQ(unlink(made->notify), 0);
    EXPECT_EQ(rmdir(made->folder), 0);
}

Ipc__Gateway__Binding *gateway_ask(ipc_connection *connection, const char *gateway, Ipc__Gateway__Verb verb,
                                   const char *id, const char *const *settings, int *ret_result,
                                   char ret_text[256])
{
    Ipc__Gateway__Request request = IPC__GATEWAY__REQUEST__INIT;
    Ipc__Gateway__Setting given[16], *pointers[16];
    Ipc__Gateway__Binding *found = NULL;
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply = {.text = ""};
    unsigned char packed[2048];
    char service[64];
    ipc_client *client;
    ipc_call *call;
    int result;

    snprintf(service, sizeof(service), "ipcd.gateway.%s", gateway);
    request.verb = verb;
    request.id = (char *)(uintptr_t)(id ? id : "");
    request.settings = pointers;
    for (size_t i = 0; settings && settings[2 * i]; i++) {
        ipc__gateway__setting__init(&given[i]);
        given[i].name = (char *)(uintptr_t)settings[2 * i];
        given[i].value = (char *)(uintptr_t)settings[2 * i + 1];
        pointers[i] = &given[i];
        request.n_settings++;
    }
    EXPECT(ipc__gateway__request__get_packed_size(&request) <= sizeof(packed));
    size_t size = ipc__gateway__request__pack(&request, packed);
    EXPECT_EQ(ipc_client_open(&client, connection, service, NULL, NULL), 0);
    how.flags = IPC_CALL_WAIT | IPC_CALL_RETRY;
    how.timeout_ns = SECONDS(60);
    EXPECT_EQ(ipc_call_start(&call, client, packed, size, &how), 0);
    while ((result = ipc_call_next(call, &reply, IPC_FOREVER)) == 1) {
        Ipc__Gateway__Item *item = ipc__gateway__item__unpack(NULL, reply.size, reply.data);
        EXPECT(item != NULL);
        if (item->binding && !found && (!id || !*id || strcmp(item->binding->id, id) == 0)) {
            found = item->binding;
            item->binding = NULL;
        }
        ipc__gateway__item__free_unpacked(item, NULL);
    }
    if (ret_text)
        snprintf(ret_text, 256, "%s", reply.text);
    if (ret_result)
        *ret_result = result < 0 ? result : 0;
    ipc_call_free(call);
    ipc_client_close(client);
    return found;
}

struct gateway_numbers gateway_wait_state(ipc_connection *connection, const char *gateway, const char *id,
                                          const char *state)
{
    for (;;) {
        Ipc__Gateway__Binding *binding =
            gateway_ask(connection, gateway, IPC__GATEWAY__VERB__LIST, id, NULL, NULL, NULL);
        EXPECT(binding != NULL);
        struct gateway_numbers numbers = {
            binding->received, binding->sent, binding->dropped, binding->refused,
            binding->bad,      binding->dead, binding->held,    ""};
        bool right = !*state || strcmp(binding->state, state) == 0;
        snprintf(numbers.error, sizeof(numbers.error), "%s", binding->last_error);
        ipc__gateway__binding__free_unpacked(binding, NULL);
        if (right)
            return numbers;
    }
}
