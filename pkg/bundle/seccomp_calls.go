package bundle

// calls is a row of the table: system calls that share one decision and one reason.
type calls struct {
	reason string
	names  []string
}

// allowedCalls is what CPython 3.9 to 3.14, its standard library, numpy, pandas and
// their C libraries use, with any argument. Old and new forms of one call stand
// together: which of them is made is the C library's choice. Names that an
// architecture or a libseccomp does not know are skipped by the runtime.
func allowedCalls() []calls {
	return []calls{
		{"read, write and move data of open files", []string{
			"read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "pwritev2",
			"lseek", "sendfile", "copy_file_range", "fadvise64", "readahead", "fsync", "fdatasync", "sync_file_range",
			"fallocate", "ftruncate", "truncate", "flock"}},
		{"descriptors; open and its like are looked at below", []string{
			"close", "close_range", "dup", "dup2", "dup3", "pipe", "pipe2", "memfd_create"}},
		{"look at files", []string{
			"stat", "fstat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat",
			"getdents", "getdents64", "statfs", "fstatfs", "getcwd", "chdir", "fchdir",
			"getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"}},
		{"change files where a mount can be written: /tmp, /dev/shm and rules with write", []string{
			"mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat",
			"chown", "fchown", "lchown", "fchownat", "umask",
			"utime", "utimes", "utimensat", "futimesat",
			"setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"}},
		{"wait for descriptors: select, selectors, asyncio", []string{
			"select", "pselect6", "poll", "ppoll", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait",
			"epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2", "signalfd", "signalfd4",
			"timerfd_create", "timerfd_settime", "timerfd_gettime"}},
		{"sockets once they exist; which can exist is decided at socket and socketpair", []string{
			"accept", "accept4", "connect", "getsockname", "getpeername", "getsockopt", "shutdown",
			"sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg"}},
		{"memory", []string{
			"brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "msync", "mlock", "mlock2", "munlock",
			"mlockall", "munlockall", "membarrier"}},
		{"threads and their locks", []string{
			"futex", "futex_waitv", "set_robust_list", "get_robust_list", "set_tid_address", "rseq", "gettid", "getcpu",
			"arch_prctl", "sched_yield", "sched_getaffinity", "sched_setaffinity", "restart_syscall"}},
		{"processes: fork, multiprocessing, and the runtime's own execve of the interpreter", []string{
			"fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "pidfd_open",
			"getpid", "getppid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid"}},
		{"signals; the pid namespace holds no process but the guest's", []string{
			"kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending",
			"rt_sigsuspend", "rt_sigtimedwait", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "sigaltstack", "pause"}},
		{"clocks and timers", []string{
			"time", "times", "gettimeofday", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep",
			"alarm", "getitimer", "setitimer"}},
		{"ids; with one id and no capability they change nothing", []string{
			"getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "capget",
			"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups"}},
		{"limits and priorities, which can only be lowered", []string{
			"getrlimit", "setrlimit", "prlimit64", "getrusage", "getpriority", "setpriority",
			"sched_getparam", "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_getattr",
			"sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval"}},
		{"what machine is this", []string{"uname", "sysinfo", "getrandom"}},
	}
}

// forbiddenCalls answer EPERM: a caller learns that it may not, rather than that
// the kernel is old. Whatever is in neither table is ENOSYS, and so are clone3,
// openat2, the NUMA calls, protection keys and Landlock, on purpose: the libraries
// that use them do without when they are missing and give up when they are
// forbidden. (A filter cannot look into the structures that clone3 and openat2 take
// their flags from.)
func forbiddenCalls() []calls {
	return []calls{
		{"mounts and roots are the runtime's", []string{
			"mount", "umount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount", "mount_setattr",
			"fsopen", "fsconfig", "fsmount", "fspick"}},
		{"namespaces are made once; clone is looked at below", []string{"unshare", "setns"}},
		// A link left in a writable directory of the host is followed there: by the
		// client, and by the next guest whose policy names a path through it.
		{"symbolic links lead whoever follows them", []string{"symlink", "symlinkat"}},
		{"look into or steer another process", []string{
			"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"}},
		{"files by handle pass by the mounts (CVE-2014-3519)", []string{"name_to_handle_at", "open_by_handle_at"}},
		{"large interfaces, the first to break in most kernel exploits", []string{
			"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
			"io_setup", "io_submit", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents",
			"timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
			"splice", "tee", "vmsplice", "seccomp"}},
		{"keys are not in a namespace of their own (CVE-2016-0728)", []string{"add_key", "request_key", "keyctl"}},
		{"System V and POSIX queues: nothing needs them, /dev/shm and pipes remain", []string{
			"shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semtimedop", "semctl",
			"msgget", "msgsnd", "msgrcv", "msgctl",
			"mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr"}},
		{"watch what others do with the files that a rule shows", []string{
			"inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "fanotify_init", "fanotify_mark",
			"mincore", "lookup_dcookie"}},
		{"a FIFO or device made in a writable directory would wait there for a process of the host", []string{"mknod", "mknodat"}},
		{"kernel code", []string{
			"init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms",
			"kexec_load", "kexec_file_load"}},
		{"the machine: power, clock, names, disks, log, accounting", []string{
			"reboot", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "stime", "sethostname", "setdomainname",
			"swapon", "swapoff", "quotactl", "quotactl_fd", "acct", "syslog", "vhangup", "sync", "syncfs",
			"nfsservctl", "_sysctl", "sysfs", "ustat", "uselib", "ioprio_set", "ioprio_get", "sched_setattr"}},
		{"processor state that weakens the rest", []string{"iopl", "ioperm", "modify_ldt", "capset", "setfsuid", "setfsgid"}},
	}
}

// servingCalls are forbidden unless the policy exposes a port; then the programs at the
// guest's cgroup know which. One end of a socketpair can be bound to a path then, and is
// a socket on the host, but one at which nobody can listen: it is connected already.
// Without bind, listen takes a port of the kernel's choice, to which nobody can connect.
func servingCalls() calls {
	return calls{"a guest serves nobody, unless its policy exposes a port", []string{"bind", "listen"}}
}
