/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses as the maps write them: 16 bytes, IPv4 as ::ffff:a.b.c.d. */
#ifndef WEFT_ADDR_BPF_H
#define WEFT_ADDR_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Values of <sys/socket.h> and <netinet/in.h>, which BPF programs can't include. */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

/* For variables that hold an address: the stack is read in aligned words. */
#define ALIGNED __attribute__((aligned(8)))

static __always_inline void put_v4(__u8 *to, __u32 addr)
{
	__u32 *words = (__u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = addr;
}

static __always_inline int is_mapped(const __u8 *addr)
{
	const __u32 *words = (const __u32 *)addr;

	return words[0] == 0 && words[1] == 0 && words[2] == bpf_htonl(0xffff);
}

/* In words: the compiler takes arrays of bytes one by one. */
static __always_inline void copy_addr(__u8 *to, const __u8 *from)
{
	const __u32 *words = (const __u32 *)from;
	__u32 *out = (__u32 *)to;

	out[0] = words[0];
	out[1] = words[1];
	out[2] = words[2];
	out[3] = words[3];
}

static __always_inline int same_addr(const __u8 *one, const __u8 *other)
{
	const __u32 *a = (const __u32 *)one, *b = (const __u32 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* 127.0.0.0/8 or ::1. */
static __always_inline int is_loopback(const __u8 *addr)
{
	const __u32 *words = (const __u32 *)addr;

	if (is_mapped(addr))
		return addr[12] == 127;
	return words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == bpf_htonl(1);
}

/* The loopback address of the same family. */
static __always_inline void put_loopback(__u8 *to, int v4)
{
	__u32 *words = (__u32 *)to;

	if (v4) {
		put_v4(to, bpf_htonl(0x7f000001));
		return;
	}
	words[0] = 0;
	words[1] = 0;
	words[2] = 0;
	words[3] = bpf_htonl(1);
}

#endif
