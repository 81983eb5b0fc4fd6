package aws

import "github.com/drawbridge/drawbridge/northbound"

// hints are the errors for which AWS IoT is known, the more special first.
func hints() []northbound.Hint {
	return []northbound.Hint{
		{Says: "closed the connection", Means: "AWS closes without a word where the certificate is not active, or its policy does not allow iot:Connect for this client id"},
		{Says: "broken the connection", Means: "AWS closes without a word where the certificate is not active, or its policy does not allow iot:Connect for this client id"},
		{Says: "not authorized", Means: "the policy does not allow iot:Connect for this client id, or the authorizer said no"},
		{Says: "refused (0x07)", Means: "the policy does not allow iot:Connect for this client id, or the authorizer said no"},
		{Says: "session taken over", Means: "two gateways have one client_id, which AWS lets in one after the other"},
		{Says: "WebSocket refused: HTTP status 403", Means: "the signature is not taken: is region the endpoint's, is the clock right, and does the role's policy allow iot:Connect?"},
		{Says: "no application protocol", Means: "the endpoint's domain configuration does not take this way to log in at this port: 8883 for certificates, 443 for tokens"},
		{Says: "sts: ExpiredTokenException", Means: "the token had ended before it was exchanged: is the clock right?"},
		{Says: "sts: InvalidIdentityToken", Means: "IAM has no identity provider for the token's issuer, or cannot read the issuer's keys from the internet"},
		{Says: "sts: IDPRejectedClaim", Means: "the role's trust policy asks for another audience or subject than the token's"},
		{Says: "sts: AccessDenied", Means: "the role's trust policy does not let this identity provider assume it"},
		{Says: "credentials provider: refused", Means: "is the certificate active, does its policy allow iot:AssumeRoleWithCertificate, and is the thing attached to it?"},
	}
}
