// Sends the chosen file to the server, and shows what it answers.
element.addEventListener('change', async event => {
  const [file] = event.target.files;
  if (!file) return;
  if (file.size > props.limit) {
    props.value = {shown: props.large};
  } else {
    props.value = {shown: '<p>Uploading ...</p>'};
    const address = 'pictures?name=' + encodeURIComponent(file.name);
    try {
      const answer = await fetch(address, {method: 'POST', body: file});
      props.value = await answer.json();
    } catch {
      props.value = {shown: props.failed};
    }
  }
  event.target.value = '';  // The same file can be chosen again.
});
