// AssumeRoleWithWebIdentity as Amazon's SDK asks for it. Arguments: URL ROLE SESSION TOKEN.
import { STSClient, AssumeRoleWithWebIdentityCommand } from '@aws-sdk/client-sts';

const [, , endpoint, RoleArn, RoleSessionName, WebIdentityToken] = process.argv;
const client = new STSClient({ endpoint, region: 'eu-central-1', maxAttempts: 1 });
try {
  const answer = await client.send(new AssumeRoleWithWebIdentityCommand({ RoleArn, RoleSessionName, WebIdentityToken }));
  console.log(JSON.stringify({ key: answer.Credentials.AccessKeyId, session: answer.Credentials.SessionToken, ends: answer.Credentials.Expiration }));
} catch (e) {
  console.log(JSON.stringify({ refused: e.name }));
}
process.stdin.resume().once('end', () => process.exit(0));
