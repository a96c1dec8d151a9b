package bpf

// LSMObject is the object file that [LoadLSM] reads, to tell versions apart.
func LSMObject() []byte { return _LSMBytes }

// SchedObject is the object file that [LoadSched] reads.
func SchedObject() []byte { return _SchedBytes }
