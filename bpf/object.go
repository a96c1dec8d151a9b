package bpf

// LSMObject is the object file that [LoadLSM] reads, to tell versions apart.
func LSMObject() []byte { return _LSMBytes }

// SchedObject is the object file that [LoadSched] reads.
func SchedObject() []byte { return _SchedBytes }

// NetObject is the object file that [LoadNet] reads.
func NetObject() []byte { return _NetBytes }

// NetImage is the object file that [LoadNet] reads, without a need to read it. Do not change it.
func NetImage() *Image { return &netImage }

// PairsImage is the object file that [LoadPairs] reads. Its maps are those of [NetImage]. Do not change it.
func PairsImage() *Image { return &pairsImage }
