package hwcrypto
type URI struct{}
