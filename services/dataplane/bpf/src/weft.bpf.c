/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The object: every program of the node, by what it looks at.
 *
 * Who opened a connection is known in connect4/connect6, which run in the caller's own context and
 * leave a record on the socket (socket.bpf.h). sockops publishes the record and moves it to the
 * accepted socket, where user space reads it (origin.bpf.h). A connection without a record is not
 * guessed at: its reader refuses it. Every path that fails leaves no record, so failing closes.
 */
#include "packet_maps.bpf.h"
#include "origin.bpf.h"
#include "bind.bpf.h"
#include "endpoint.bpf.h"
#include "process.bpf.h"
#include "socket.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
