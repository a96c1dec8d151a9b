package policy

// What tests outside the package look at.
var (
	PrivateBlocks  = privateBlocks
	ReservedBlocks = reservedBlocks
)
