package bpf

// Image is an object as the kernel takes it: what is in the object file, with nothing left
// to be parsed or relocated but the descriptors of the maps. mkimage makes it, of objects
// that need no kernel types and call no functions of their own.
type Image struct {
	Digest   string // of the object file, 16 characters: tells versions apart
	Maps     []MapImage
	Programs []ProgramImage
}

// MapImage is what BPF_MAP_CREATE is told.
type MapImage struct {
	Name                                        string
	Type, KeySize, ValueSize, MaxEntries, Flags uint32
	Inner                                       *MapImage // what a map of maps has in it; it is made empty
}

// ProgramImage is what BPF_PROG_LOAD is told.
type ProgramImage struct {
	Name, License            string
	Type, ExpectedAttachType uint32
	Instructions             []uint64
	References               []Reference
}

// Reference is an instruction that wants the descriptor of a map.
type Reference struct {
	Instruction int // its number in ProgramImage.Instructions
	Map         int // its number in Image.Maps
}
