// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// The kernel types that lsm.bpf.c looks into: only the fields that it reads. Their offsets are put
// in when the program is loaded (CO-RE), from what the running kernel says about itself.
#pragma once

#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qstr {
	__u32 len;
	const unsigned char *name;
};

struct super_block {
	unsigned long s_flags;
};

struct inode {
	__u16 i_mode;
	struct super_block *i_sb;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	unsigned char d_iname[32]; // a short name; up to Linux 6.13
	struct super_block *d_sb;
};

struct vfsmount {
	struct dentry *mnt_root;
	struct super_block *mnt_sb;
};

struct ns_common {
	unsigned int inum;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct mnt_namespace *mnt_ns;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct path f_path;
	struct inode *f_inode;
};

struct mm_struct {
	struct file *exe_file;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct task_struct {
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
};

struct vm_area_struct {
	struct file *vm_file;
};

struct linux_binprm {
	struct file *file;
};

struct unix_address;

struct sock_common {
	unsigned short skc_family;
	__u16 skc_num; // the local port; 0 before bind
};

struct sock {
	struct sock_common __sk_common;
};

struct unix_sock {
	struct unix_address *addr;
	struct path path;
};

struct socket {
	short type;
	struct sock *sk;
};

#pragma clang attribute pop
